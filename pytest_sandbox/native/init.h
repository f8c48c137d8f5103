// The first process of a sandbox; runtime/init.py is the same in Python, and says what it is for.
#ifndef SANDBOX_INIT_H
#define SANDBOX_INIT_H

#include "messages.h"

// What a new init is given: sockets to its caller and, where the helper must write the id maps, to the helper (else
// -1), a pidfd of the caller, and the files by which a process joins the sandbox's cgroups: those in which its cgroup
// namespace begins, and those that it then stays in, which may be the same.
struct given {
    int control, sync, lifeline;
    int joins[MOST_FDS], stays[MOST_FDS];
    int join_count;
    bool traced;  // whether the caller wants to know how long each step takes
};

// Runs in the new process until the sandbox ends.
_Noreturn void init_main(const struct given *given, const struct json *plan);

#endif
