#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Deeper than any message of ours.
#define DEEPEST 32

struct reader {
    char *at, *end;
    struct json *free_node;
    int depth;
};

static bool read_value(struct reader *reader, struct json *value);

static void skip_space(struct reader *reader)
{
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) != NULL && *reader->at != '\0')
        reader->at++;
}

static bool skip(struct reader *reader, char wanted)
{
    skip_space(reader);
    if (reader->at == reader->end || *reader->at != wanted)
        return false;
    reader->at++;
    return true;
}

static bool read_word(struct reader *reader, const char *word)
{
    size_t length = strlen(word);

    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        return false;
    reader->at += length;
    return true;
}

static bool read_hex(struct reader *reader, unsigned *code)
{
    *code = 0;
    if (reader->end - reader->at < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        char c = *reader->at++;
        unsigned digit;

        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            digit = (unsigned)(c - 'A' + 10);
        else
            return false;
        *code = *code << 4 | digit;
    }
    return true;
}

// Never longer than the escape that it stands for, so it is written over it.
static char *put_utf8(char *to, unsigned code)
{
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    }
    return to;
}

static bool read_escape(struct reader *reader, char **to, bool *unfit)
{
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    unsigned code, low;
    char c;

    if (reader->at == reader->end)
        return false;
    c = *reader->at++;
    if (c != 'u') {
        const char *found = c == '\0' ? NULL : strchr(names, c);

        if (found == NULL)
            return false;
        *(*to)++ = meanings[found - names];
        return true;
    }
    if (!read_hex(reader, &code))
        return false;
    if (code >= 0xd800 && code < 0xdc00 && read_word(reader, "\\u")) {
        if (!read_hex(reader, &low))
            return false;
        if (low >= 0xdc00 && low < 0xe000) {
            *to = put_utf8(*to, 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00)));
            return true;
        }
        *unfit = true;
    }
    if (code >= 0xdc80 && code <= 0xdcff) {
        *(*to)++ = (char)(code & 0xff);  // a byte that was not UTF-8: Python's surrogateescape
    } else if (code == 0 || (code >= 0xd800 && code < 0xe000)) {
        *unfit = true;
    } else {
        *to = put_utf8(*to, code);
    }
    return true;
}

static bool read_string(struct reader *reader, char **text, bool *unfit)
{
    char *to;

    if (!skip(reader, '"'))
        return false;
    *text = to = reader->at;
    while (reader->at < reader->end) {
        char c = *reader->at++;

        if (c == '"') {
            *to = '\0';
            return true;
        }
        if (c == '\0') {
            *unfit = true;
        } else if (c != '\\') {
            *to++ = c;
        } else if (!read_escape(reader, &to, unfit)) {
            return false;
        }
    }
    return false;
}

static bool read_number(struct reader *reader, long long *number)
{
    char *start = reader->at;
    bool negative = read_word(reader, "-");
    unsigned long long value = 0;

    if (reader->at == reader->end || *reader->at < '0' || *reader->at > '9')
        return false;
    while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9') {
        if (reader->at - start > 18)
            return false;
        value = value * 10 + (unsigned)(*reader->at++ - '0');
    }
    if (reader->at < reader->end && strchr(".eE", *reader->at) != NULL && *reader->at != '\0')
        return false;  // no message of ours to us has fractions
    *number = negative ? -(long long)value : (long long)value;
    return true;
}

static bool read_members(struct reader *reader, struct json *value, char end)
{
    struct json **last = &value->first;

    reader->at++;
    if (skip(reader, end))
        return true;
    do {
        struct json *member = reader->free_node++;

        if (end == '}') {
            if (!read_string(reader, &member->key, &member->unfit) || !skip(reader, ':'))
                return false;
        }
        if (!read_value(reader, member))
            return false;
        *last = member;
        last = &member->next;
    } while (skip(reader, ','));
    return skip(reader, end);
}

static bool read_value(struct reader *reader, struct json *value)
{
    bool good;

    skip_space(reader);
    if (reader->at == reader->end || reader->depth == DEEPEST)
        return false;
    switch (*reader->at) {
    case '{':
    case '[':
        value->kind = *reader->at == '{' ? OBJECT : ARRAY;
        reader->depth++;
        good = read_members(reader, value, value->kind == OBJECT ? '}' : ']');
        reader->depth--;
        return good;
    case '"':
        value->kind = STRING;
        return read_string(reader, &value->text, &value->unfit);
    case 't':
        value->kind = BOOLEAN;
        value->number = 1;
        return read_word(reader, "true");
    case 'f':
        value->kind = BOOLEAN;
        return read_word(reader, "false");
    case 'n':
        return read_word(reader, "null");
    default:
        value->kind = NUMBER;
        return read_number(reader, &value->number);
    }
}

struct json *json_read(struct document *document, char *body, size_t length)
{
    struct reader reader = {.at = body, .end = body + length};
    size_t most = 2;

    // Every value but the outermost follows one of these.
    for (size_t i = 0; i < length; i++)
        most += body[i] == ',' || body[i] == '[' || body[i] == '{';
    document->body = body;
    document->nodes = calloc(most, sizeof *document->nodes);
    if (document->nodes != NULL) {
        reader.free_node = document->nodes + 1;
        if (read_value(&reader, document->nodes)) {
            skip_space(&reader);
            if (reader.at == reader.end)
                return document->nodes;
        }
    }
    json_free(document);
    return NULL;
}

void json_free(struct document *document)
{
    free(document->nodes);
    free(document->body);
    document->nodes = NULL;
    document->body = NULL;
}

struct json *json_member(const struct json *object, const char *key)
{
    if (object == NULL || object->kind != OBJECT)
        return NULL;
    for (struct json *one = object->first; one != NULL; one = one->next)
        if (strcmp(one->key, key) == 0)
            return one;
    return NULL;
}

struct json *json_at(const struct json *array, int place)
{
    struct json *one = array == NULL ? NULL : array->first;

    while (one != NULL && place-- > 0)
        one = one->next;
    return one;
}

static bool make_room(struct text *text, size_t more)
{
    size_t wanted = text->length + more + 1, room = text->room < 256 ? 256 : text->room;
    char *bytes;

    if (text->failed)
        return false;
    if (wanted <= text->room)
        return true;
    while (room < wanted)
        room *= 2;
    bytes = realloc(text->bytes, room);
    if (bytes == NULL) {
        text->failed = true;
        return false;
    }
    text->bytes = bytes;
    text->room = room;
    return true;
}

void text_add(struct text *text, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0 || !make_room(text, (size_t)length))
        return;
    va_start(arguments, format);
    vsnprintf(text->bytes + text->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    text->length += (size_t)length;
}

// How many bytes the UTF-8 character at `bytes` has; 0 where there is none.
static size_t utf8_length(const unsigned char *bytes, size_t left)
{
    static const unsigned smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = bytes[0] < 0x80 ? 1 : bytes[0] >> 5 == 6 ? 2 : bytes[0] >> 4 == 14 ? 3 : bytes[0] >> 3 == 30 ? 4 : 0;
    unsigned code;

    if (length <= 1 || length > left)
        return length == 1;
    code = bytes[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (bytes[i] >> 6 != 2)
            return 0;
        code = code << 6 | (bytes[i] & 0x3f);
    }
    return code >= smallest[length] && code < 0x110000 && (code < 0xd800 || code > 0xdfff) ? length : 0;
}

void text_string(struct text *text, const char *bytes, size_t length, bool replace)
{
    text_add(text, "\"");
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)bytes[i];
        size_t whole = utf8_length((const unsigned char *)bytes + i, length - i);

        if (whole == 0)
            text_add(text, replace ? "\\ufffd" : "\\udc%02x", c);
        else if (c < 0x20 || c == 0x7f)
            text_add(text, "\\u%04x", c);
        else if (c == '"' || c == '\\')
            text_add(text, "\\%c", c);
        else
            text_add(text, "%.*s", (int)whole, bytes + i);
        i += whole == 0 ? 1 : whole;
    }
    text_add(text, "\"");
}

void text_path(struct text *text, const char *path)
{
    if (path == NULL)
        text_add(text, "null");
    else
        text_string(text, path, strlen(path), false);
}
