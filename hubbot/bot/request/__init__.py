"""Requests of people: what an issue or a discussion asks for, what is answered, who may start it."""
