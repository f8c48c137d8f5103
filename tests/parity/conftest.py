collect_ignore = ["suite"]  # the suite is run by the harness, in a copy
