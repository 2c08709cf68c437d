"""The one script that a probe sends: sections of plain commands, one round trip.

Each section's output is read by a pure parser of the same name in `parsers.py`. It runs under any
POSIX shell; what needs Python is asked of the job's own interpreter, so that its absence is a fact too.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.controller.probe import machinescript

MARK = "@@llmctl:"

_SEC = r"""
sec() { printf '\n@@llmctl:%s\n' "$1"; }
"""

_HEAD = r"""
PATH="$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
W=$1; PY=$2; AGENT=$3; TARGET=$4
case $W in "~") W=$HOME;; "~/"*) W=$HOME/${W#??};; esac
sec system; uname -s -m -r; printf '%s\n' "$HOME"; date +%s
sec os; sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null
sec cores; nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
sec memory; sed -n 's/^MemTotal: *//p' /proc/meminfo 2>/dev/null
sec workdir; printf '%s\n' "$W"
# A workdir of a local host may lie inside the code folder: neither git nor a push takes it along.
(umask 077; mkdir -p "$W" && { [ -e "$W/.gitignore" ] || echo '*' >"$W/.gitignore"; } &&
  mkdir -p "$W/runs" "$W/agent" "$W/code" "$W/cache") 2>&1 && test -w "$W" && echo writable
sec disk; df -Pk "$W" 2>/dev/null || df -Pk "$HOME"
sec tools; for t in tar zstd gzip cp; do command -v $t >/dev/null 2>&1 && echo $t; done
CSV=--format=csv,noheader,nounits
sec gpus; if have nvidia-smi; then
  # An older driver refuses the whole question for one field that it doesn't know; a hung one is asked once.
  O=$(within 10 nvidia-smi --query-gpu="$GPU" $CSV 2>&1) || { [ $? = 124 ] && HUNG=1; } ||
    O=$(within 10 nvidia-smi --query-gpu=index,name,memory.total,driver_version $CSV 2>&1)
  [ -z "$HUNG" ] || O="nvidia-smi did not answer within 10 s"
  printf '%s\n' "$O"
fi
sec agent; [ -n "$AGENT" ] && { wc -c <"$W/agent/$AGENT.pyz"; } 2>/dev/null
sec data; N=0; for d; do N=$((N+1))
  [ $N -le 5 ] || { [ -f "$d" ] && echo there || echo missing; }
done
"""

_TAIL = r"""
sec python
case $PY in "~/"*) PY=$HOME/${PY#??};; esac
case $PY in
  # By its own name: the link may lead to another environment tomorrow.
  */env/by/*/bin/python) D=$(cd -P -- "${PY%/bin/python}" 2>/dev/null && pwd) && PY=$D/bin/python;;
  python3) [ ! -x "$W/python/default" ] || PY=$W/python/default;;
esac
"$PY" -c "$5" "$TARGET" 2>&1
"""

GPU_FIELDS = (
    "index", "name", "memory.total", "driver_version", "uuid", "pci.bus_id", "memory.used",
    "ecc.errors.uncorrected.volatile.total", "retired_pages.pending", "mig.mode.current", "compute_mode",
    "temperature.gpu",
)  # fmt: skip
"""The first four are what an older driver is asked for; parsers.gpus reads by position."""

_SHELL = (
    "HUNG=\n"
    + f"GPU={','.join(GPU_FIELDS)}\n"
    + machinescript.HELPERS
    + _SEC
    + _HEAD
    + machinescript.CLOCK
    + machinescript.IDENTITY
    + machinescript.MACHINE
    + "{full}"
    + _TAIL
    + machinescript.END
    + "sec end\n"
)


def shell(*, full: bool) -> str:
    """The script's text; `full` adds what only a person asks for, such as every Python of the host."""
    return f"FULL={1 if full else ''}\n" + _SHELL.replace("{full}", machinescript.FULL if full else "")


PYTHON = r"""
import json, os, re, socket, struct, sys, time
import importlib.util as u
def version_of(name):
    spec = u.find_spec(name)
    if spec is None or not spec.origin: return None, None
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py")) as f: text = f.read()
    except OSError: return "unknown", None
    v = re.search(r"__version__\s*(?::.*?)?=\s*['\"]([^'\"]+)", text)
    c = re.search(r"^cuda\s*(?::.*?)?=\s*['\"]([^'\"]+)", text, re.M)
    return (v.group(1) if v else "unknown"), (c.group(1) if c else None)
def addresses():
    import fcntl
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            req = struct.pack("256s", name.encode()[:15])
            try:
                ip = socket.inet_ntoa(fcntl.ioctl(s, 0x8915, req)[20:24])
                mask = fcntl.ioctl(s, 0x891b, req)[20:24]
            except OSError: continue
            found.append([name, ip, bin(struct.unpack("!I", mask)[0]).count("1")])
    return found
def source(target):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect((target, 9)); return s.getsockname()[0]
        except OSError: return None
def free_port():
    import random
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as f: low = int(f.read().split()[0])
    except (OSError, ValueError): low = 32768
    for _ in range(50):
        port = random.randint(15000, max(15100, low - 1))
        with socket.socket() as s:
            try: s.bind(("0.0.0.0", port)); return port
            except OSError: continue
    return 0
def packages():
    found = set()
    for folder in sys.path:
        try: names = os.listdir(folder or ".")
        except OSError: continue
        for name in names:
            m = re.match(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info$", name)
            if m: found.add(re.sub(r"[-_.]+", "-", m.group(1)).lower() + " " + m.group(2))
    return sorted(found)
target = sys.argv[1]
torch, cuda = version_of("torch")
found = addresses()
src = source(target) if target else None
print(json.dumps({"executable": sys.executable, "version": "%d.%d.%d" % sys.version_info[:3],
  "torch": torch, "cuda": cuda, "free_port": free_port(), "addresses": found,
  "modules": [m for m in ("fsspec", "numpy", "tokenizers", "tensorboard", "safetensors", "aiohttp",
                          "jinja2", "vllm") if u.find_spec(m)],
  "source": src, "hostname": socket.gethostname(), "packages": packages(),
  "venv": bool(u.find_spec("venv") and u.find_spec("ensurepip"))}))
"""


LOOK = [
    "sh",
    "-c",
    machinescript.HELPERS + _SEC + machinescript.IDENTITY + "sec end\n",
    "llmctl-look",
]
"""The command line that asks only which machine this is: nothing is made or started there."""


def argv(
    *,
    workdir: str,
    python: str,
    agent: str = "",
    target: str = "",
    data: Sequence[str] = (),
    full: bool = False,
) -> list[str]:
    """The command line of a probe; every value is an argument, none is spliced into script text.

    Args:
        target: IPv4 address whose route is asked for; empty: none.
        data: paths of files that the job will read on the host.
        full: ask for everything, as `hosts check` does.
    """
    return ["sh", "-c", shell(full=full), "llmctl-probe", workdir, python, agent, target, PYTHON, *data]
