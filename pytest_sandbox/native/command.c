#define _GNU_SOURCE
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "messages.h"

#define DEFAULT_PATH "/bin:/usr/bin"  // Python's os.defpath

bool command_stands_back;

static struct command {
    pid_t pid;
    int channel;
    bool listens;
} *commands;
static size_t count;

// Starting.

static bool is_file(const char *path)
{
    struct stat found;

    return stat(path, &found) == 0 && S_ISREG(found.st_mode);
}

// What execvp(3) would run: a path of the caller's to free, or with -1 and errno the one that may not be run, or NULL.
static int find(const char *name, const char *folders, char **file)
{
    *file = NULL;
    if (strchr(name, '/') != NULL)
        return (*file = strdup(name)) != NULL ? 0 : -1;
    for (const char *at = folders, *end;; at = end + 1) {
        char *here;

        end = at + strcspn(at, ":");
        if (asprintf(&here, "%.*s%s%s", end == at ? 1 : (int)(end - at), end == at ? "." : at,
                     end > at && end[-1] == '/' ? "" : "/", name) < 0)
            return -1;
        if (is_file(here)) {
            free(*file);
            *file = here;
            if (access(here, X_OK) == 0)
                return 0;
        } else {
            free(here);
        }
        if (*end == '\0')
            break;
    }
    errno = *file != NULL ? EACCES : ENOENT;
    return -1;
}

static size_t length_of(const struct json *array)
{
    size_t length = 0;

    for (const struct json *one = array->first; one != NULL; one = one->next)
        length++;
    return length;
}

// A NULL-terminated array of an array's texts, or of NAME=TEXT for an object's. It is never freed before an exec.
static char **texts_of(const struct json *values)
{
    char **texts = calloc(length_of(values) + 1, sizeof *texts), **to = texts;

    if (texts == NULL)
        return NULL;
    for (const struct json *one = values->first; one != NULL; one = one->next, to++) {
        if (one->unfit || one->kind != STRING) {
            errno = EINVAL;
            return NULL;
        }
        *to = one->text;
        if (one->key != NULL && asprintf(to, "%s=%s", one->key, one->text) < 0)
            return NULL;
    }
    return texts;
}

static void free_texts(char **texts, bool contents)
{
    for (char **one = texts; contents && one != NULL && *one != NULL; one++)
        free(*one);
    free(texts);
}

struct start {
    const char *file;
    char **argv, **env;
    int fds[3];
    const struct json *ids, *umask;
};

// In the new process, which shares our memory until it has its own.
static int become(const struct start *start)
{
    sigset_t none;

    if (setsid() < 0)
        return -1;
    if (command_stands_back)
        sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
    for (int i = 0; i < 3; i++)
        if (dup2(start->fds[i], i) < 0)
            return -1;
    if (start->umask != NULL && start->umask->kind == NUMBER)
        umask((mode_t)start->umask->number);
    if (start->ids != NULL && start->ids->kind == ARRAY) {
        uid_t uid = (uid_t)json_at(start->ids, 0)->number;
        gid_t gid = (gid_t)json_at(start->ids, 1)->number;

        // A user namespace of a single id denies setgroups, and leaves nothing to give up.
        if (setgroups(1, &gid) < 0 && errno != EPERM)
            return -1;
        if (setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
            return -1;
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    return execve(start->file, start->argv, start->env);
}

static pid_t run(const struct start *start)
{
    static volatile int failure;
    pid_t pid;

    failure = 0;
    pid = vfork();
    if (pid == 0) {
        become(start);
        failure = errno;
        _exit(127);
    }
    if (pid > 0 && failure != 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        errno = failure;
        return -1;
    }
    return pid;
}

// The null device is the sandbox's own instead: the host's mode could be changed through the one that came.
static int own_null(int fd)
{
    struct stat look;
    int null, placed;

    if (fstat(fd, &look) < 0)
        return -1;
    if (!S_ISCHR(look.st_mode) || look.st_rdev != makedev(1, 3))
        return 0;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return -1;
    placed = dup3(null, fd, O_CLOEXEC);
    close(null);
    return placed < 0 ? -1 : 0;
}

// None of the streams may be among 0 to 2, so that placing one does not overwrite another.
static int lift(int *fds)
{
    for (int i = 0; i < 3; i++) {
        if (own_null(fds[i]) < 0)
            return -1;
        if (fds[i] < 3) {
            int above = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);

            if (above < 0)
                return -1;
            close(fds[i]);
            fds[i] = above;
        }
    }
    return 0;
}

pid_t command_start(const struct json *what, int *fds, const char **path)
{
    static char *last;  // what `path` may point to
    const struct json *cwd = json_member(what, "cwd"), *argv = json_member(what, "argv"),
                      *env = json_member(what, "env"), *folders;
    struct start start = {.ids = json_member(what, "ids"), .umask = json_member(what, "umask")};
    pid_t pid = -1;
    int error;

    *path = NULL;
    if (cwd->unfit || argv->first == NULL || argv->first->unfit || lift(fds) < 0) {
        errno = EINVAL;
        return -1;
    }
    memcpy(start.fds, fds, sizeof start.fds);
    *path = cwd->text;
    if (chdir(cwd->text) < 0)
        return -1;
    *path = NULL;
    start.argv = texts_of(argv);
    start.env = start.argv != NULL ? texts_of(env) : NULL;
    if (start.env != NULL) {
        folders = json_member(env, "PATH");
        free(last);
        if (find(argv->first->text, folders != NULL ? folders->text : DEFAULT_PATH, &last) == 0) {
            start.file = last;
            pid = run(&start);
        }
        *path = last != NULL ? last : argv->first->text;
    }
    error = errno;
    free_texts(start.argv, false);
    free_texts(start.env, true);
    if (chdir("/") < 0)
        _exit(1);
    errno = error;
    return pid;
}

// Those that run.

int command_keep(pid_t pid, int channel)
{
    struct command *more = realloc(commands, (count + 1) * sizeof *more);

    if (more == NULL)
        return -1;
    commands = more;
    commands[count++] = (struct command){pid, channel, true};
    return 0;
}

int command_ended(pid_t pid)
{
    for (size_t i = 0; i < count; i++) {
        if (commands[i].pid == pid) {
            int channel = commands[i].channel;

            commands[i] = commands[--count];
            return channel;
        }
    }
    return -1;
}

size_t command_count(void)
{
    return count;
}

void command_poll(struct pollfd *polled)
{
    for (size_t i = 0; i < count; i++)
        polled[i] = (struct pollfd){.fd = commands[i].listens ? commands[i].channel : -1, .events = POLLIN};
}

static void send_signal(pid_t pid, const struct json *message)
{
    const struct json *number = json_member(message, "signal"), *group = json_member(message, "group");

    if (number != NULL)
        kill(group != NULL && group->number != 0 ? -pid : pid, (int)number->number);
}

void command_told(int channel)
{
    struct message message;
    enum received received = receive(channel, &message, MSG_DONTWAIT);

    for (size_t i = 0; i < count; i++) {
        if (commands[i].channel != channel)
            continue;
        if (received == RECEIVED)
            send_signal(commands[i].pid, message.object);
        else if (received != FAILED || (errno != EAGAIN && errno != EWOULDBLOCK))
            commands[i].listens = false;  // whoever started it listens no more; the command goes on
    }
    if (received == RECEIVED)
        message_free(&message);
}

void command_signal_all(int number)
{
    for (size_t i = 0; i < count; i++)
        kill(-commands[i].pid, number);
}
