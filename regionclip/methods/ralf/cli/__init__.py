"""The command line of RALF."""
