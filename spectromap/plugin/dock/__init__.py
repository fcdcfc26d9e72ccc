"""The dock: the steps of the method with their options, what they found, and the messages."""
