// System calls that not every C library wraps; each returns -1 and sets errno as they all do.
#ifndef SANDBOX_CALLS_H
#define SANDBOX_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

// Calls of Linux 5.0 and later have one number on every architecture.
enum {
    CALL_OPEN_TREE = 428,
    CALL_MOVE_MOUNT = 429,
    CALL_PIDFD_OPEN = 434,
    CALL_CLONE3 = 435,
    CALL_OPENAT2 = 437,
    CALL_MOUNT_SETATTR = 442,
};

#define TREE_CLONE 1u
#define TREE_CLOEXEC ((unsigned)O_CLOEXEC)
#define TREE_RECURSIVE 0x8000u
#define MAPS_IDS 0x100000ull  // MOUNT_ATTR_IDMAP
#define MOVE_BY_DESCRIPTORS 0x44u  // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
#define INTO_CGROUP 0x200000000ull

static inline int call_open_tree(int at, const char *path, unsigned flags)
{
    return (int)syscall(CALL_OPEN_TREE, at, path, flags);
}

static inline int call_move_mount(int from, int to)
{
    return (int)syscall(CALL_MOVE_MOUNT, from, "", to, "", MOVE_BY_DESCRIPTORS);
}

// With MAPS_IDS among the attributes, `namespace` is the user namespace whose map the mount takes on.
static inline int call_mount_setattr(int at, const char *path, unsigned flags, uint64_t set, int namespace)
{
    uint64_t attributes[4] = {set, 0, 0, namespace < 0 ? 0 : (uint64_t)namespace};

    return (int)syscall(CALL_MOUNT_SETATTR, at, path, flags, attributes, sizeof attributes);
}

static inline int call_openat2(int at, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    int fd, attempts = 1000;

    // EAGAIN: something was renamed or mounted while ".." was resolved.
    do {
        fd = (int)syscall(CALL_OPENAT2, at, path, &how, sizeof how);
    } while (fd < 0 && errno == EAGAIN && --attempts > 0);
    return fd;
}

static inline int call_pidfd_open(int pid)
{
    return (int)syscall(CALL_PIDFD_OPEN, pid, 0);
}

// A fork into new namespaces, and into the cgroup v2 that the descriptor `into` is, unless that is negative.
static inline int call_clone3(uint64_t flags, int into)
{
    uint64_t arguments[11] = {flags};

    if (into >= 0) {
        arguments[0] |= INTO_CGROUP;
        arguments[10] = (uint64_t)into;
    }
    return (int)syscall(CALL_CLONE3, arguments, sizeof arguments);
}

#endif
