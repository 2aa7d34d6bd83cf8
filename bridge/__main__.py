"""`python -m bridge` is `rnn-bridge`."""

from bridge.cli import main

if __name__ == "__main__":
    main()
