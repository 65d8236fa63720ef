"""The command line: `regionclip detect|features|concepts|eval|train|download|doctor`."""
