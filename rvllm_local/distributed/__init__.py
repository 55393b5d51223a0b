"""One model over several processes or machines: rank 0 decides, all compute."""
