/* Named counters in C: what statemachine/examples/counter is in Rust, with the same requests, answers, events and snapshots, to show that the
 * interface is open. A cluster that runs the one can go on with the other.
 *
 * Build it with ./build.sh counter-c.wasm. */
#define RSM_DESCRIPTION "app=counter version=0.1.0-c schema=1 accepts_from=1"
#include "rsm.h"

#define NAME_BYTES_MAX 64
/* Of a word of a request, so that an answer has room for it. */
#define WORD_BYTES_MAX 256
/* Every state needs a bound. */
#define COUNTERS_MAX 10000

struct counter {
    i64 value;
    u8 len;
    u8 name[NAME_BYTES_MAX];
};

/* All state is here. */
static struct counter counters[COUNTERS_MAX];
/* The places of the counters in the order of their names; behind those, the places that are free. */
static unsigned short order[COUNTERS_MAX];
static u32 count;
static u32 counters_max = COUNTERS_MAX;

/* The topic "counters": the first 16 bytes of the SHA-256 of its name. */
static const u8 topic[16] = {
    0x33, 0x2d, 0xaf, 0x8d, 0x95, 0x7f, 0x47, 0x64,
    0x12, 0x28, 0xf8, 0x61, 0x7a, 0xc3, 0x21, 0xb4,
};

/* A word of a request. */
typedef struct rsm_bytes word;

static word name_of(u32 nth) { return (word){counters[order[nth]].name, counters[order[nth]].len}; }

/* Where the name is among the counters, or would be; `there`: whether it is. */
static u32 find(word name, i32 *there) {
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = (low + high) / 2;
        i32 compared = rsm_compare(name_of(middle), name);
        if (compared == 0) {
            *there = 1;
            return middle;
        }
        if (compared < 0) low = middle + 1;
        else high = middle;
    }
    *there = 0;
    return low;
}

static void insert(u32 nth, word name, i64 value) {
    unsigned short place = order[count];
    for (u32 i = count; i > nth; i--) order[i] = order[i - 1];
    order[nth] = place;
    count++;
    counters[place].value = value;
    counters[place].len = (u8)name.len;
    __builtin_memcpy(counters[place].name, name.at, name.len);
}

static i64 take_out(u32 nth) {
    unsigned short place = order[nth];
    for (u32 i = nth; i + 1 < count; i++) order[i] = order[i + 1];
    order[--count] = place;
    return counters[place].value;
}

static i32 is_space(u8 byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

/* The next word of a text, or an empty one; `text` goes on behind it. */
static word next_word(word *text) {
    while (text->len && is_space(*text->at)) text->at++, text->len--;
    word found = {text->at, 0};
    while (text->len && !is_space(*text->at)) text->at++, text->len--, found.len++;
    return found;
}

/* Reads a signed number; whether it is one, and fits. */
static i32 parse(word text, i64 *value) {
    i32 negative = text.len && *text.at == '-';
    u64 magnitude = 0, limit = negative ? 1ull << 63 : (1ull << 63) - 1;
    u32 at = text.len && (negative || *text.at == '+');
    if (at == text.len) return 0;
    for (; at < text.len; at++) {
        u32 digit = text.at[at] - '0';
        if (digit > 9 || magnitude > (limit - digit) / 10) return 0;
        magnitude = magnitude * 10 + digit;
    }
    *value = (i64)(negative ? -magnitude : magnitude);
    return 1;
}

/* Whether these bytes are UTF-8, without surrogates and forms that are too long. */
static i32 is_text(word bytes) {
    for (u32 i = 0; i < bytes.len;) {
        u8 first = bytes.at[i++];
        u32 more = first < 0x80 ? 0 : first < 0xc2 ? 9 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 9;
        if (more > 3 || more > bytes.len - i) return 0;
        u32 code = more == 0 ? first : first & (0x3fu >> more);
        for (u32 left = more; left; left--) {
            if ((bytes.at[i] & 0xc0) != 0x80) return 0;
            code = code << 6 | (bytes.at[i++] & 0x3f);
        }
        if (code >= 0xd800 && code < 0xe000) return 0;
        if ((more == 2 && code < 0x800) || (more == 3 && (code < 0x10000 || code > 0x10ffff))) return 0;
    }
    return 1;
}

/* ---- Answers. What can't be done is answered with "error: " and the reason; it leaves no trace. ---- */

static void answer(word before, word name, word after) {
    rsm_reply();
    rsm_put(before);
    rsm_put(name);
    rsm_put(after);
    rsm_end();
}

static void answer_number(i64 value) {
    rsm_reply();
    rsm_put_number(value);
    rsm_end();
}

static void push(word name, i64 value) {
    rsm_push(topic);
    rsm_put(name);
    rsm_put(RSM_TEXT(" "));
    rsm_put_number(value);
    rsm_end();
}

#define NOTHING RSM_TEXT("")

static void look_up(word verb, word name, word rest) {
    i32 there;
    if (rsm_compare(verb, RSM_TEXT("get")) == 0 && name.len && !rest.len) {
        u32 nth = find(name, &there);
        answer_number(there ? counters[order[nth]].value : 0);
    } else if (rsm_compare(verb, RSM_TEXT("list")) == 0 && !name.len) {
        rsm_reply();
        for (u32 i = 0; i < count; i++) {
            rsm_put(name_of(i));
            rsm_put(RSM_TEXT(" "));
            rsm_put_number(counters[order[i]].value);
            rsm_put(RSM_TEXT("\n"));
        }
        rsm_end();
    } else {
        answer(RSM_TEXT("error: try `add NAME N`, `remove NAME`, `get NAME` or `list`"), NOTHING, NOTHING);
    }
}

static void add(word name, word amount) {
    i64 change, value;
    i32 there;
    if (!parse(amount, &change)) return answer(RSM_TEXT("error: "), amount, RSM_TEXT(" isn't a number"));
    if (name.len > NAME_BYTES_MAX) return answer(RSM_TEXT("error: a name has at most 64 bytes"), NOTHING, NOTHING);
    u32 nth = find(name, &there);
    if (there) {
        if (__builtin_add_overflow(counters[order[nth]].value, change, &value))
            return answer(RSM_TEXT("error: "), name, RSM_TEXT(" would overflow"));
        counters[order[nth]].value = value;
    } else {
        if (count >= counters_max) {
            rsm_reply();
            rsm_put(RSM_TEXT("error: there are "));
            rsm_put_number(count);
            rsm_put(RSM_TEXT(" counters already; remove one"));
            return rsm_end();
        }
        insert(nth, name, value = change);
    }
    push(name, value);
    answer_number(value);
}

static void remove(word name) {
    i32 there;
    u32 nth = find(name, &there);
    if (!there) return answer(RSM_TEXT("error: there is no counter "), name, NOTHING);
    i64 value = take_out(nth);
    rsm_push(topic);
    rsm_put(name);
    rsm_put(RSM_TEXT(" removed"));
    rsm_end();
    answer_number(value);
}

/* ---- What rsm.h asks for ---- */

static i32 machine_init(struct rsm_bytes config) {
    static const u8 key[] = "max_counters=";
    for (u32 i = 0; i < COUNTERS_MAX; i++) order[i] = (unsigned short)i;
    if (!config.len) return 0;
    if (config.len < sizeof key - 1 || rsm_compare((word){config.at, sizeof key - 1}, (word){key, sizeof key - 1}))
        return rsm_refuse(RSM_TEXT("the configuration is empty or max_counters=N"));
    word text = {config.at + sizeof key - 1, config.len - (sizeof key - 1)};
    word number = next_word(&text);
    i64 value;
    if (!parse(number, &value) || value < 0 || next_word(&text).len)
        return rsm_refuse(RSM_TEXT("max_counters must be a number"));
    if (value > COUNTERS_MAX) return rsm_refuse(RSM_TEXT("max_counters is at most 10000"));
    counters_max = (u32)value;
    return 0;
}

static void machine_apply(const struct rsm_context *context, struct rsm_bytes request) {
    if (context->kind != RSM_REQUEST) return;
    if (!is_text(request)) return answer(RSM_TEXT("error: a request is UTF-8 text"), NOTHING, NOTHING);
    word verb = next_word(&request), name = next_word(&request), amount = next_word(&request);
    i32 ended = !next_word(&request).len;
    if (name.len > WORD_BYTES_MAX || amount.len > WORD_BYTES_MAX)
        return answer(RSM_TEXT("error: a word has at most 256 bytes"), NOTHING, NOTHING);
    if (rsm_compare(verb, RSM_TEXT("add")) == 0 && amount.len && ended) add(name, amount);
    else if (rsm_compare(verb, RSM_TEXT("remove")) == 0 && name.len && !amount.len) remove(name);
    else look_up(verb, name, amount);
}

static void machine_query(const struct rsm_context *context, struct rsm_bytes request) {
    (void)context;
    if (!is_text(request)) return answer(RSM_TEXT("error: a request is UTF-8 text"), NOTHING, NOTHING);
    word verb = next_word(&request), name = next_word(&request), rest = next_word(&request);
    look_up(verb, name, rest);
}

/* One record for each counter, in the order of their names: 8 bytes of value, then the name. */
static i32 machine_record(u32 n) {
    if (n >= count) return 0;
    u8 value[8];
    rsm_store(value, (u64)counters[order[n]].value, 8);
    rsm_record();
    rsm_put((struct rsm_bytes){value, 8});
    rsm_put(name_of(n));
    return 1;
}

static i32 machine_restore(u32 schema, struct rsm_bytes record) {
    if (schema != 1) return rsm_refuse(RSM_TEXT("counter 0.1.0-c reads snapshots of schema 1"));
    if (record.len < 8) return rsm_refuse(RSM_TEXT("a record has at least 8 bytes"));
    word name = {record.at + 8, record.len - 8};
    i32 there;
    if (name.len > NAME_BYTES_MAX || !is_text(name)) return rsm_refuse(RSM_TEXT("a name is UTF-8, of at most 64 bytes"));
    if (count >= COUNTERS_MAX) return rsm_refuse(RSM_TEXT("there are more than 10000 counters"));
    u32 nth = find(name, &there);
    if (there) return rsm_refuse(RSM_TEXT("a counter comes twice"));
    insert(nth, name, (i64)rsm_load(record.at, 8));
    return 0;
}
