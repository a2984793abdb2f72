"""Pictures: sections, colours, plots."""
