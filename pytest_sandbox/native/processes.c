#define _GNU_SOURCE
#include "processes.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LONGEST 65536

void processes_find(struct pids *pids)
{
    DIR *folder = opendir("/proc");
    struct dirent *entry;

    pids->count = 0;
    if (folder == NULL)
        return;
    while ((entry = readdir(folder)) != NULL) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

        if (!isdigit((unsigned char)entry->d_name[0]) || pid == 1)
            continue;
        if (pids->count == pids->room) {
            size_t room = pids->room == 0 ? 64 : pids->room * 2;
            pid_t *more = realloc(pids->pids, room * sizeof *more);

            if (more == NULL)
                break;
            pids->pids = more;
            pids->room = room;
        }
        pids->pids[pids->count++] = pid;
    }
    closedir(folder);
}

// The beginning of a file in /proc; the bytes read, or -1.
static ssize_t read_file(pid_t pid, const char *name, char *to, size_t room)
{
    char path[64];
    ssize_t got, length = 0;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    while ((size_t)length < room && (got = read(fd, to + length, room - (size_t)length)) != 0) {
        if (got < 0) {
            length = -1;
            break;
        }
        length += got;
    }
    close(fd);
    return length;
}

// One process as proc_pid_stat(5) has it.
struct process {
    char name[64];
    size_t name_length;
    char state;
    long parent, threads;
    unsigned long long user, system;  // with its reaped children, in ticks
};

static bool look_at(pid_t pid, struct process *process)
{
    char stat[2048], *name, *end;
    ssize_t length = read_file(pid, "stat", stat, sizeof stat - 1);
    unsigned long long user, system;
    long long reaped_user, reaped_system;

    if (length <= 0)
        return false;
    stat[length] = '\0';
    name = memchr(stat, '(', (size_t)length);
    end = memrchr(stat, ')', (size_t)length);  // a name may hold one
    if (name == NULL || end == NULL || end < name)
        return false;
    process->name_length = (size_t)(end - name - 1);
    if (process->name_length > sizeof process->name)
        process->name_length = sizeof process->name;
    memcpy(process->name, name + 1, process->name_length);
    if (sscanf(end + 1, " %c %ld %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %lld %lld %*d %*d %ld", &process->state,
               &process->parent, &user, &system, &reaped_user, &reaped_system, &process->threads) != 7)
        return false;
    process->user = user + (unsigned long long)reaped_user;
    process->system = system + (unsigned long long)reaped_system;
    return true;
}

bool processes_are_there(struct pids *pids)
{
    struct process process;
    size_t left = 0;

    for (size_t i = 0; i < pids->count; i++)
        if (look_at(pids->pids[i], &process) && process.parent != 0)
            pids->pids[left++] = pids->pids[i];
    pids->count = left;
    return left > 0;
}

static void describe_arguments(struct text *text, const char *arguments, size_t length)
{
    const char *end;

    while (length > 0 && arguments[length - 1] == '\0')
        length--;
    text_add(text, "[");
    end = arguments + length;
    for (const char *at = arguments; length > 0; at++) {
        const char *next = memchr(at, '\0', (size_t)(end - at));

        if (next == NULL)
            next = end;
        text_string(text, at, (size_t)(next - at), true);
        if (next == end)
            break;
        text_add(text, ",");
        at = next;
    }
    text_add(text, "]");
}

void processes_describe(struct text *text)
{
    static char arguments[LONGEST];
    static struct pids pids;
    struct process process;
    const char *comma = "";

    processes_find(&pids);
    text_add(text, "{\"processes\":[");
    for (size_t i = 0; i < pids.count; i++) {
        ssize_t length;

        if (!look_at(pids.pids[i], &process) || (length = read_file(pids.pids[i], "cmdline", arguments, LONGEST)) < 0)
            continue;  // it ended meanwhile
        text_add(text, "%s{\"pid\":%d,\"ppid\":%ld,\"state\":\"%c\",\"name\":", comma, (int)pids.pids[i],
                 process.parent, process.state);
        text_string(text, process.name, process.name_length, true);
        text_add(text, ",\"args\":");
        describe_arguments(text, arguments, (size_t)length);
        text_add(text, "}");
        comma = ",";
    }
    text_add(text, "]}");
}

void processes_used(struct text *text, const struct rusage *used, double user, double system)
{
    text_add(text, "[%.6f,%.6f,%ld,%ld]", (double)used->ru_utime.tv_sec + (double)used->ru_utime.tv_usec / 1e6 + user,
             (double)used->ru_stime.tv_sec + (double)used->ru_stime.tv_usec / 1e6 + system, used->ru_inblock,
             used->ru_oublock);
}

void processes_usage(struct text *text)
{
    static struct pids pids;
    unsigned long long user = 0, system = 0;
    double ticks = (double)sysconf(_SC_CLK_TCK);
    struct process process;
    struct rusage reaped;
    long tasks = 0;

    processes_find(&pids);
    for (size_t i = 0; i < pids.count; i++) {
        if (look_at(pids.pids[i], &process)) {
            user += process.user;
            system += process.system;
            tasks += process.threads;
        }
    }
    getrusage(RUSAGE_CHILDREN, &reaped);
    text_add(text, "{\"used\":");
    processes_used(text, &reaped, (double)user / ticks, (double)system / ticks);
    text_add(text, ",\"pids\":%ld}", tasks);
}
