// What /proc of a sandbox tells about its processes, as runtime/init.py has it.
#ifndef SANDBOX_PROCESSES_H
#define SANDBOX_PROCESSES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "json.h"

struct pids {
    pid_t *pids;
    size_t count, room;
};

// All inside but this one.
void processes_find(struct pids *pids);
// Whether one of them is still there. Those whose parent is outside do not count.
bool processes_are_there(struct pids *pids);

// {"processes": [...]} and {"used": [...], "pids": N} as a message has them.
void processes_describe(struct text *text);
void processes_usage(struct text *text);
// User and system seconds, blocks read and written; `user` and `system` are seconds more.
void processes_used(struct text *text, const struct rusage *used, double user, double system);

#endif
