"""Adapters to other tools, each in the module of the tool's name; the tools are imported when they are used."""
