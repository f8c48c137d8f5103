#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "actions.h"
#include "calls.h"
#include "command.h"
#include "messages.h"
#include "processes.h"

#define JOIN_SESSION_KEYRING 1

static const int forwarded[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};

// Where the making was when it failed: a part of the plan and the number of its step, or nothing.
static const char *failed_part;
static int failed_step;

static void say(int sock, struct text *text, int flags)
{
    send_text(sock, text, NULL, 0, flags);  // who does not listen any more needs no answer
    free(text->bytes);
}

_Noreturn static void fail(int control)
{
    int error = errno;
    struct text text = {0};

    if (failed_part != NULL)
        text_add(&text, "{\"failed\":{\"part\":\"%s\",\"number\":%d", failed_part, failed_step);
    else
        text_add(&text, "{\"failed\":{\"step\":[\"init\"]");
    text_add(&text, ",\"errno\":%d,\"path\":", error);
    text_path(&text, failed_path);
    text_add(&text, "}}");
    say(control, &text, 0);
    _exit(1);
}

// When each step of the making was over, where somebody wants to know; see runtime/tracing.py.
static struct text marks;
static bool traced;

static void mark(const char *what, int number)
{
    struct timespec now;

    if (!traced)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    text_add(&marks, "%s[\"%s\",%d,%lld]", marks.length > 0 ? "," : "", what, number,
             (long long)now.tv_sec * 1000000000 + now.tv_nsec);
}

// The making.

static int carry_out(const struct json *plan, const char *part)
{
    const struct json *steps = json_member(plan, part);

    failed_part = part;
    failed_step = 0;
    for (const struct json *step = steps->first; step != NULL; step = step->next, failed_step++) {
        for (const struct json *action = step->first; action != NULL; action = action->next)
            if (perform(action) < 0)
                return -1;
        mark(part, failed_step);
    }
    failed_part = NULL;
    failed_path = NULL;
    return 0;
}

static int write_once(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t written;

    failed_path = path;
    if (fd < 0)
        return -1;
    written = write(fd, text, strlen(text));
    close(fd);
    if (written < 0)
        return -1;
    failed_path = NULL;
    return 0;
}

static int map_ids(int sync, const struct json *plan)
{
    char answer = 0;

    if (sync < 0) {
        if (write_once("/proc/self/setgroups", "deny") < 0
            || write_once("/proc/self/uid_map", json_member(plan, "uid_map")->text) < 0)
            return -1;
        return write_once("/proc/self/gid_map", json_member(plan, "gid_map")->text);
    }
    if (send(sync, "m", 1, MSG_NOSIGNAL) < 0 || recv(sync, &answer, 1, 0) != 1 || answer != 'm') {
        errno = EPERM;
        return -1;
    }
    close(sync);
    return 0;
}

static void write_if_can(int at, const char *name, const char *text)
{
    int fd = openat(at, name, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    if (write(fd, text, strlen(text)) < 0) {
        // It stays as it is.
    }
    close(fd);
}

// See runtime/shares.py. `folder` is its /proc/sys/user, opened before it was read-only, or -1.
static void take_shares(int folder, const struct json *plan)
{
    const char *oom = json_member(plan, "oom")->text;

    if (folder >= 0) {
        for (const struct json *one = json_member(plan, "counts")->first; one != NULL; one = one->next)
            write_if_can(folder, json_at(one, 0)->text, json_at(one, 1)->text);
        close(folder);
    }
    if (*oom != '\0')
        write_if_can(AT_FDCWD, "/proc/self/oom_score_adj", oom);
}

static int new_session_keyring(void)
{
    return syscall(SYS_keyctl, JOIN_SESSION_KEYRING, NULL) < 0 && errno != EPERM && errno != ENOSYS ? -1 : 0;
}

// Becomes the root of the sandbox that is to be. See begin_as() in runtime/commands.py.
static int begin_as(uid_t base)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    gid_t group = base;

    if (new_session_keyring() < 0 || prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setgroups(1, &group) < 0
        || setresgid(group, group, group) < 0 || setresuid(base, base, base) < 0
        || syscall(SYS_capget, &header, sets) < 0)
        return -1;
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        sets[i].effective = sets[i].permitted;
    return syscall(SYS_capset, &header, sets) < 0 ? -1 : prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static int limit_tasks(rlim_t most)
{
    struct rlimit now;

    if (getrlimit(RLIMIT_NPROC, &now) < 0)
        return -1;
    if (now.rlim_cur < most)  // RLIM_INFINITY is the largest
        most = now.rlim_cur;
    if (now.rlim_max < most)
        most = now.rlim_max;
    now.rlim_cur = now.rlim_max = most;
    return setrlimit(RLIMIT_NPROC, &now);
}

static int filter_calls(const char *hex)
{
    size_t length = strlen(hex) / 2;
    unsigned char *bytes = malloc(length + 1);
    struct sock_fprog program;
    long result;

    if (bytes == NULL)
        return -1;
    for (size_t i = 0; i < length; i++) {
        char digits[] = {hex[2 * i], hex[2 * i + 1], '\0'};

        bytes[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    program.len = (unsigned short)(length / sizeof(struct sock_filter));
    program.filter = (struct sock_filter *)(void *)bytes;
    result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
    free(bytes);
    return (int)result;
}

static int give_up_privileges(const struct json *plan)
{
    const struct json *nproc = json_member(plan, "nproc");
    const char *filter = json_member(plan, "seccomp")->text;

    if (nproc->kind == NUMBER && limit_tasks((rlim_t)nproc->number) < 0)
        return -1;
    for (const struct json *one = json_member(plan, "drop")->first; one != NULL; one = one->next)
        if (prctl(PR_CAPBSET_DROP, (unsigned long)one->number, 0, 0, 0) < 0)
            return -1;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    if (json_member(plan, "base")->number == 0 && new_session_keyring() < 0)
        return -1;
    // Nobody inside may look into this process, whatever its capabilities: commands run with its memory at first.
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return -1;
    return *filter != '\0' ? filter_calls(filter) : 0;
}

// All at once; one by one where each is to be timed, the one that owns the others first.
static int unshare_all(int namespaces)
{
    static const int each[] = {CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWCGROUP, CLONE_NEWNET};

    if (!traced)
        return unshare(namespaces);
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        if ((namespaces & each[i]) == 0)
            continue;
        if (unshare(each[i]) < 0)
            return -1;
        mark("namespace", each[i]);
    }
    return 0;
}

// Makes the namespaces. See unbound() in runtime/commands.py.
static int make_namespaces(const struct json *plan)
{
    static const int by_user[] = {RLIMIT_NPROC, RLIMIT_MSGQUEUE, RLIMIT_SIGPENDING, RLIMIT_MEMLOCK};
    enum { COUNT = sizeof by_user / sizeof *by_user };
    const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    struct rlimit before[COUNT];
    bool shifted = json_member(plan, "base")->number != 0;

    for (int i = 0; shifted && i < COUNT; i++)
        if (getrlimit(by_user[i], &before[i]) < 0 || (setrlimit(by_user[i], &none) < 0 && errno != EPERM))
            return -1;
    if (unshare_all((int)json_member(plan, "namespaces")->number) < 0)
        return -1;
    for (int i = 0; shifted && i < COUNT; i++)
        if (setrlimit(by_user[i], &before[i]) < 0)
            return -1;
    return 0;
}

// Returns a descriptor of the writable layer, or -1. The order is the one of runtime/init.py, and for its reasons.
static int set_up(int sync, const struct json *plan)
{
    int scratch;

    if (json_member(plan, "base")->number != 0 && begin_as((uid_t)json_member(plan, "base")->number) < 0)
        return -1;
    if (carry_out(plan, "scratch") < 0)
        return -1;
    scratch = call_open_tree(AT_FDCWD, "/scratch", TREE_CLONE | TREE_CLOEXEC);
    mark("tree", -1);
    if (scratch < 0 || carry_out(plan, "mounts") < 0)
        return -1;
    if (make_namespaces(plan) < 0 || map_ids(sync, plan) < 0)
        return -1;
    mark("ids", -1);
    take_shares(shares_folder, plan);
    mark("shares", -1);
    if (carry_out(plan, "inside") < 0 || give_up_privileges(plan) < 0)
        return -1;
    mark("privileges", -1);
    return scratch;
}

// Leaves the cgroups in which the cgroup namespace begins for those to stay in.
static int settle(const struct given *given)
{
    for (int i = 0; i < given->join_count; i++) {
        if (given->stays[i] == given->joins[i])
            continue;
        if (write(given->stays[i], "0", 1) < 0)
            return -1;
        close(given->joins[i]);
    }
    return 0;
}

static int tell_ready(const struct given *given, int scratch)
{
    struct text text = {0};
    int fds[3 + MOST_FDS], result;

    fds[0] = call_pidfd_open(getpid());
    fds[1] = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    fds[2] = scratch;
    if (fds[0] < 0 || fds[1] < 0)
        return -1;
    memcpy(fds + 3, given->stays, (size_t)given->join_count * sizeof(int));
    text_add(&text, "{\"ready\":true");
    if (traced) {
        mark("ready", -1);
        text_add(&text, ",\"trace\":[%s]", marks.bytes);
        free(marks.bytes);
    }
    text_add(&text, "}");
    result = send_text(given->control, &text, fds, 3 + given->join_count, 0);
    free(text.bytes);
    // Not the writable layer: to let go of a detached mount takes a millisecond of whoever is the last to, and that
    // shall be this process.
    close(fds[0]);
    close(fds[1]);
    for (int i = 0; i < given->join_count; i++)
        close(given->stays[i]);
    return result;
}

// The service.

struct init {
    int control, lifeline, signals;
    struct pids killed;  // what a kill has ended and may not be gone yet
    int *asked;  // channels of those who want to hear when it is
    size_t asked_count;
};

static void obey_spawn(const struct json *what, struct message *message)
{
    struct text text = {0};
    int channel = message->fds[3];
    const char *path = NULL;
    pid_t pid = command_start(what, message->fds, &path);
    int error = errno;

    if (pid < 0) {
        text_add(&text, "{\"errno\":%d,\"path\":", error);
        text_path(&text, path);
        text_add(&text, "}");
    } else if (command_keep(pid, channel) < 0) {
        kill(-pid, SIGKILL);  // nobody would hear of its end; the channel's tells that it is gone
        return;
    } else {
        message->fd_count = 3;  // the channel is kept
        text_add(&text, "{\"pid\":%d}", (int)pid);
    }
    say(channel, &text, MSG_DONTWAIT);  // nobody outside can make us wait
}

static void ask(struct init *init, struct message *message)
{
    int *asked = realloc(init->asked, (init->asked_count + 1) * sizeof *asked);

    if (asked != NULL) {
        init->asked = asked;
        asked[init->asked_count++] = message->fds[--message->fd_count];
    }
}

static void obey(struct init *init, struct message *message)
{
    const struct json *one;

    if ((one = json_member(message->object, "spawn")) != NULL) {
        if (message->fd_count == 4)
            obey_spawn(one, message);
    } else if ((one = json_member(message->object, "kill")) != NULL) {
        processes_find(&init->killed);
        kill(-1, (int)one->number);
    } else if (message->fd_count != 1) {
        return;
    } else if (json_member(message->object, "list") != NULL) {
        struct text text = {0};

        processes_describe(&text);
        say(message->fds[0], &text, 0);
    } else if (json_member(message->object, "usage") != NULL) {
        struct text text = {0};

        processes_usage(&text);
        say(message->fds[0], &text, 0);
    } else if (json_member(message->object, "ping") != NULL) {
        ask(init, message);
    }
}

static void reap(void)
{
    struct rusage used;
    int status;
    pid_t pid;

    while ((pid = wait4(-1, &status, WNOHANG, &used)) > 0) {
        int channel = command_ended(pid);

        if (channel >= 0) {
            struct text text = {0};

            text_add(&text, "{\"status\":%d,\"used\":", status);
            processes_used(&text, &used, 0, 0);
            text_add(&text, "}");
            say(channel, &text, MSG_DONTWAIT);
            close(channel);
        }
    }
}

static void signalled(const struct init *init)
{
    struct signalfd_siginfo told[16];
    ssize_t got;

    while ((got = read(init->signals, told, sizeof told)) > 0)
        for (size_t i = 0; i < (size_t)got / sizeof *told; i++)
            if (told[i].ssi_signo != SIGCHLD)
                command_signal_all((int)told[i].ssi_signo);
    reap();
}

// Tells those who asked, once all that was killed is gone. Not every end is ours to reap, so they are looked for.
static void answer(struct init *init)
{
    reap();
    if (processes_are_there(&init->killed))
        return;
    for (size_t i = 0; i < init->asked_count; i++) {
        struct text text = {0};

        text_add(&text, "{\"pong\":true}");
        say(init->asked[i], &text, MSG_DONTWAIT);
        close(init->asked[i]);
    }
    init->asked_count = 0;
}

// Waits for what comes next. False when the sandbox ends.
static bool serve_once(struct init *init)
{
    static struct pollfd *polled;
    size_t count = 3 + command_count();
    struct pollfd *room = realloc(polled, count * sizeof *polled);
    struct message message;

    if (room == NULL)
        return false;
    polled = room;
    polled[0] = (struct pollfd){.fd = init->lifeline, .events = POLLIN};
    polled[1] = (struct pollfd){.fd = init->signals, .events = POLLIN};
    polled[2] = (struct pollfd){.fd = init->control, .events = POLLIN};
    command_poll(polled + 3);
    if (poll(polled, count, init->asked_count > 0 ? 5 : -1) < 0)
        return errno == EINTR;
    if (polled[0].revents != 0)
        return false;
    for (size_t i = 3; i < count; i++)  // before any of them is forgotten
        if (polled[i].revents != 0)
            command_told(polled[i].fd);
    if (polled[1].revents != 0)
        signalled(init);
    if (polled[2].revents != 0) {
        switch (receive(init->control, &message, 0)) {
        case RECEIVED:
            obey(init, &message);
            message_free(&message);
            break;
        case BAD:  // it came with more descriptors than we may have
            break;
        default:
            return false;
        }
    }
    if (init->asked_count > 0)
        answer(init);
    return true;
}

static int watch_signals(void)
{
    struct sigaction fresh = {.sa_handler = SIG_DFL};
    sigset_t watched;

    // As the first process of its namespace it is spared all whose meaning is the default.
    for (int number = 1; number < 32; number++)
        sigaction(number, &fresh, NULL);
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
        sigaddset(&watched, forwarded[i]);
    sigprocmask(SIG_SETMASK, &watched, NULL);
    return signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
}

_Noreturn void init_main(const struct given *given, const struct json *plan)
{
    struct init init = {.control = given->control, .lifeline = given->lifeline};
    const struct json *group = json_member(plan, "group");
    int scratch;

    traced = given->traced;
    mark("begin", -1);
    prctl(PR_SET_NAME, "sandbox-init", 0, 0, 0);
    if (group->kind == OBJECT && json_member(group, "version")->number == 1)  // else it was born there
        for (int i = 0; i < given->join_count; i++)
            if (write(given->joins[i], "0", 1) < 0)
                fail(given->control);
    mark("cgroup", -1);
    init.signals = watch_signals();
    scratch = set_up(given->sync, plan);
    if (init.signals < 0 || scratch < 0 || settle(given) < 0 || tell_ready(given, scratch) < 0)
        fail(given->control);
    while (serve_once(&init))
        ;
    _exit(1);
}
