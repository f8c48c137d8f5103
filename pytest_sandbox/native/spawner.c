// Starts the first processes of sandboxes for the helper, and is what they run. See runtime/spawner.py.
//
// It is a program of its own because it is small: a fork of it copies a few pages where one of a Python process copies
// thousands, and what it forks lives as long as the sandbox. It does nothing by itself, reads nothing from inside a
// sandbox, and is the helper's only.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actions.h"
#include "calls.h"
#include "command.h"
#include "init.h"
#include "messages.h"

// The plans that it was told, for good: there are as many as there are kinds of sandboxes in a run.
struct plan {
    struct plan *next;
    struct message message;
    const char *key;
    const struct json *body;
};
static struct plan *plans;

static void remember(struct message *message)
{
    struct plan *plan = malloc(sizeof *plan);

    if (plan == NULL)
        exit(1);
    plan->message = *message;
    plan->key = json_member(message->object, "plan")->text;
    plan->body = json_member(message->object, "body");
    plan->next = plans;
    plans = plan;
}

static const struct json *plan_of(const char *key)
{
    for (const struct plan *one = plans; one != NULL; one = one->next)
        if (strcmp(one->key, key) == 0)
            return one->body;
    return NULL;
}

// {"make": KEY, "sync": bool, "into": bool, "moves": [bool, ...], "trace"?: N} + [control, sync?, into?, joins..., stays...]: answered
// by {"pid": N} or {"errno": N}. There is a place in "moves" for each join, true where a stay of its own follows.
static void make(int sock, int lifeline, struct message *message)
{
    const struct json *plan = plan_of(json_member(message->object, "make")->text), *moves;
    struct given given = {.lifeline = lifeline, .sync = -1};
    struct text answer = {0};
    int place = 0, into = -1, pid;

    given.traced = json_member(message->object, "trace") != NULL;
    given.control = message->fds[place++];
    if (json_member(message->object, "sync")->number)
        given.sync = message->fds[place++];
    if (json_member(message->object, "into")->number)
        into = message->fds[place++];
    moves = json_member(message->object, "moves");
    for (const struct json *one = moves->first; one != NULL && place < message->fd_count; one = one->next)
        given.joins[given.join_count++] = message->fds[place++];
    for (int i = 0; i < given.join_count; i++) {
        bool moved = json_at(moves, i)->number != 0 && place < message->fd_count;

        given.stays[i] = moved ? message->fds[place++] : given.joins[i];
    }
    // A child of the helper's, which waits for it. Who is made with this flag inherits how its end is told.
    errno = EINVAL;
    pid = plan == NULL ? -1 : call_clone3(CLONE_PARENT | CLONE_NEWPID | CLONE_NEWNS, into);
    if (pid == 0) {
        close(sock);
        if (into >= 0)
            close(into);
        init_main(&given, plan);
    }
    text_add(&answer, pid < 0 ? "{\"errno\":%d}" : "{\"pid\":%d}", pid < 0 ? errno : pid);
    if (send_text(sock, &answer, NULL, 0, 0) < 0)
        exit(1);
    free(answer.bytes);
}

int main(int argc, char **argv)
{
    struct message message;
    int sock, lifeline;

    if (argc == 2 && strcmp(argv[1], "--actions") == 0) {
        list_actions();
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "%s: part of pytest-sandbox, which starts it itself\n", argv[0]);
        return 2;
    }
    sock = atoi(argv[1]);
    lifeline = atoi(argv[2]);
    command_stands_back = atoi(argv[3]);
    if (fcntl(sock, F_SETFD, FD_CLOEXEC) < 0 || fcntl(lifeline, F_SETFD, FD_CLOEXEC) < 0)
        return 1;
    for (;;) {
        enum received received = receive(sock, &message, 0);

        if (received != RECEIVED)
            return received != ENDED;
        if (json_member(message.object, "plan") != NULL) {
            remember(&message);
        } else {
            make(sock, lifeline, &message);
            message_free(&message);
        }
    }
}
