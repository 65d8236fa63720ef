"""Commands of LP-OVOD: part of the command line, like `regionclip.cli`."""
