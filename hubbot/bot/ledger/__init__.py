"""The state file: one SQLite database that remembers what was seen, tried, and received.

store     opening, migrations, transactions
alive     which workers still live, told by locks of the kernel
jobs      the queue: enqueue, claim, finish, fail, retry
events    webhook deliveries: accepted, then delivered
mirror    sources, models and releases as the Hub last showed them
report    what `hubbot status` shows
"""
