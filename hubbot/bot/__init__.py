"""The bot: what is new on the Hub, what to do about it, the queue, the webhooks, the workers."""
