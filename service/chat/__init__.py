"""The playground: a few words with a released adapter, in a process of its own."""
