"""`python -m llmctl` is the same command as `llmctl`."""

from llmctl.controller.cli.app import main

if __name__ == "__main__":
    main()
