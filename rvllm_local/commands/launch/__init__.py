"""Starting coding agents on this machine's server: what each of them needs is data."""
