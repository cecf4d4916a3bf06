"""Where the time went and why: the account, roofline, workloads, the ladder, quality."""
