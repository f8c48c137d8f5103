// Messages as runtime/protocol.py has them: one JSON object on a SOCK_SEQPACKET socket, descriptors beside it.
#ifndef SANDBOX_MESSAGES_H
#define SANDBOX_MESSAGES_H

#include "json.h"

#define MOST_FDS 16

struct message {
    struct document document;
    struct json *object;
    int fds[MOST_FDS];
    int fd_count;
};

enum received { RECEIVED, ENDED, BAD, FAILED };

// The next message; its descriptors are the receiver's to close. BAD: what came is none, and is closed already.
// FAILED: as recvmsg(2) says in errno. `flags` as recvmsg(2) takes them.
enum received receive(int sock, struct message *message, int flags);
void message_free(struct message *message);  // its descriptors, too
int send_text(int sock, const struct text *text, const int *fds, int fd_count, int flags);

#endif
