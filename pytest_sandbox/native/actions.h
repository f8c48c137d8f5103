// The smallest acts of a sandbox's making; runtime/actions.py says what each is.
#ifndef SANDBOX_ACTIONS_H
#define SANDBOX_ACTIONS_H

#include "json.h"

// Carries one out. -1 with errno, and in `failed_path` the path that it was about, or NULL.
int perform(const struct json *action);
extern const char *failed_path;

// What the action "shares" has opened, or -1.
extern int shares_folder;

// Prints the names of all actions, a line each.
void list_actions(void);

#endif
