"""A stream read in constant memory: killed, taken up again, and compared with one that was not."""
