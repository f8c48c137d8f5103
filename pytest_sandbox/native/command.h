// The commands that run in a sandbox, each with the channel to whoever started it.
#ifndef SANDBOX_COMMAND_H
#define SANDBOX_COMMAND_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "json.h"

// Whether this process has the policy SCHED_BATCH and commands shall not (stand_back in runtime/init.py).
extern bool command_stands_back;

// Starts one by the "spawn" message `what`, with three descriptors as its streams. -1 with errno, and in `path` what
// could not be found or run, or NULL.
pid_t command_start(const struct json *what, int *fds, const char **path);

// Remembers one that was started, and takes over its channel; -1 where there is no memory.
int command_keep(pid_t pid, int channel);
// Forgets the one that has ended; returns its channel, now the caller's to close, or -1 when it is none of ours.
int command_ended(pid_t pid);

// For poll(2): how many channels there are, and their entries; -1 stands for one whose other end is gone.
size_t command_count(void);
void command_poll(struct pollfd *polled);
// There is something to read on a channel.
void command_told(int channel);
void command_signal_all(int number);

#endif
