"""The kernel side: system calls, probes, the plan as data, and the code that carries it out. Knows no pytest."""
