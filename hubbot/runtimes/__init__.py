"""What runs where: the layouts that are made, the runtimes that people have, and which reads which. Pure."""
