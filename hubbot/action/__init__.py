"""The GitHub Action: inputs, the step, what GitHub reads of it, the container's entry point."""
