"""An example of a package that extends tunesmith: a metric, a check, a format, an optimizer and an export target."""
