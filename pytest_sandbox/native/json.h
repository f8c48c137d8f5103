// JSON as far as runtime/protocol.py speaks it: read into a tree, written into a growing text.
#ifndef SANDBOX_JSON_H
#define SANDBOX_JSON_H

#include <stdbool.h>
#include <stddef.h>

enum kind { NOTHING, BOOLEAN, NUMBER, STRING, ARRAY, OBJECT };

// One value. Strings are NUL-terminated bytes, as Python's os.fsencode makes them of the text.
struct json {
    enum kind kind;
    bool unfit;  // a string that no system call can take: it holds a NUL, or is no text of this system's
    long long number;  // of a NUMBER or BOOLEAN
    char *text;  // of a STRING
    char *key;  // of an OBJECT's member
    struct json *first, *next;  // an ARRAY's or OBJECT's values
};

// A tree and what it lies in. Made by json_read, ended by json_free.
struct document {
    char *body;
    struct json *nodes;
};

// Reads `length` bytes, which become the document's. NULL where they are not JSON, or there is no memory.
struct json *json_read(struct document *document, char *body, size_t length);
void json_free(struct document *document);

// A member of an object; NULL where there is none.
struct json *json_member(const struct json *object, const char *key);
// An array's value by its place; NULL where there is none.
struct json *json_at(const struct json *array, int place);

// Text that grows. `failed` says that there was no memory for all of it.
struct text {
    char *bytes;
    size_t length, room;
    bool failed;
};

void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
// A JSON string. What is not UTF-8 becomes what os.fsdecode makes of it, or the replacement character.
void text_string(struct text *text, const char *bytes, size_t length, bool replace);
// A path as a JSON string, or null.
void text_path(struct text *text, const char *path);

#endif
