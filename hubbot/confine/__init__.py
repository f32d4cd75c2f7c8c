"""A child process that reads strangers' files with neither token nor network."""
