"""An adapter in, files to ship out."""
