"""Other servers, started from their own code, so that they can be measured in the same run."""
