"""How long a test waits for another process."""

# Seconds after which it waits for ever, for all one can tell: no limit on how long work takes, which another
# load of the machine makes any number of times as long.
FOR_EVER = 3600
