"""A deferred module costs nothing to import, and is the real one as soon as it is used."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_real_module_comes_with_the_first_use() -> None:
    """Before: a stand-in. After one attribute: the real one, for everybody."""
    code = (
        "import sys\nfrom llmctl.controller.transport.deferred import defer\n"
        "defer('wave')\nimport wave\nprint('open' in vars(wave))\nopened = wave.open\n"
        "import wave as again\nprint('open' in vars(again), again.open is opened)"
    )
    assert python(code).split() == ["False", "True", "True"]


def test_what_is_not_installed_is_not_invented() -> None:
    """A library that asks `try: import x` must still get its ImportError."""
    code = (
        "from llmctl.controller.transport.deferred import defer\ndefer('no_such_module_anywhere')\n"
        "try:\n    import no_such_module_anywhere\nexcept ImportError:\n    print('missing')"
    )
    assert python(code) == "missing"


def test_paramiko_comes_without_its_rarest_companion_and_finds_it_when_needed() -> None:
    """invoke is loaded for `Match exec` only; there it must work as ever."""
    code = (
        "import io, sys\nimport llmctl.controller.transport.sshconfig\nimport paramiko\n"
        "print('invoke.collection' in sys.modules)\n"
        "config = paramiko.SSHConfig.from_file(io.StringIO('Match exec true\\n  User eve\\n'))\n"
        "print(config.lookup('x')['user'])"
    )
    assert python(code).split() == ["False", "eve"]
