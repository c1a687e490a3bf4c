/* rsm.h: guest ABI 1 for modules in C, without a C library. docs/guest-abi.md is the interface, to the byte.
 *
 * One file of a module includes it, once, and writes the functions that are declared at the end. The header has the exports, the list of
 * outputs, and the stream of records that snapshots are made of: the same as that of the Rust SDK, so that a module in C can take over
 * from one in Rust, and the other way round.
 *
 * Build with `clang --target=wasm32 -mbulk-memory -nostdlib -Wl,--no-entry`: bulk memory lets the compiler copy and fill without memcpy. */
#ifndef RSM_H
#define RSM_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
_Static_assert(sizeof(void *) == 4 && sizeof(u64) == 8, "this is for wasm32");

#define RSM_EXPORT(name) __attribute__((export_name(#name), used))
#define RSM_HEADER_BYTES 64
/* Bytes of what one call may put out, and of a chunk of a snapshot. */
#define RSM_OUT_BYTES (1u << 20)
/* Bytes of a record of a snapshot. */
#define RSM_RECORD_BYTES 1024

enum rsm_kind { RSM_REQUEST, RSM_TICK, RSM_CONNECT, RSM_DISCONNECT };

/* What is in front of every request and query. Little-endian, as wasm is. */
struct rsm_context {
    u32 size;
    u32 kind;
    u64 index;
    u8 client[16];
    i64 time_us;
    u64 seq;
    u8 seed[16];
};
_Static_assert(sizeof(struct rsm_context) == RSM_HEADER_BYTES, "the header of ABI 1");

/* Bytes that are somebody else's. */
struct rsm_bytes {
    const u8 *at;
    u32 len;
};

#define RSM_TEXT(literal) ((struct rsm_bytes){(const u8 *)(literal), sizeof(literal) - 1})

/* ---- What a module writes ---- */

#ifndef RSM_DESCRIPTION
#error "define RSM_DESCRIPTION first: \"app=NAME version=VERSION schema=N accepts_from=N\""
#endif
/* Makes the machine. Returns 0, or refuses the configuration with rsm_refuse. */
static i32 machine_init(struct rsm_bytes config);
/* Executes an entry of the log. */
static void machine_apply(const struct rsm_context *context, struct rsm_bytes request);
/* Answers a query, and changes nothing. */
static void machine_query(const struct rsm_context *context, struct rsm_bytes request);
/* Writes the record number `n` of the state with rsm_record_*, or returns 0 if there are no more. */
static i32 machine_record(u32 n);
/* Takes the next record of a snapshot of this schema. Returns 0, or refuses it with rsm_refuse. */
static i32 machine_restore(u32 schema, struct rsm_bytes record);

/* ---- Bytes ---- */

static i32 rsm_compare(struct rsm_bytes a, struct rsm_bytes b) {
    for (u32 i = 0; i < a.len && i < b.len; i++)
        if (a.at[i] != b.at[i]) return a.at[i] < b.at[i] ? -1 : 1;
    return a.len == b.len ? 0 : a.len < b.len ? -1 : 1;
}

static u64 rsm_load(const u8 *at, u32 bytes) {
    u64 value = 0;
    for (u32 i = 0; i < bytes; i++) value |= (u64)at[i] << (8 * i);
    return value;
}

static void rsm_store(u8 *at, u64 value, u32 bytes) {
    for (u32 i = 0; i < bytes; i++) at[i] = (u8)(value >> (8 * i));
}

/* ---- Why something was refused ---- */

static struct {
    u32 len;
    u8 text[1020];
} rsm_panic;

/* Notes the reason, for rsm_init and rsm_restore. Always 1, to be returned. */
static i32 rsm_refuse(struct rsm_bytes reason) {
    rsm_panic.len = reason.len < sizeof rsm_panic.text ? reason.len : sizeof rsm_panic.text;
    __builtin_memcpy(rsm_panic.text, reason.at, rsm_panic.len);
    return 1;
}

RSM_EXPORT(rsm_panic_buf) u32 rsm_panic_buf(void) { return (u32)&rsm_panic; }

/* ---- The list of outputs ---- */

static u8 rsm_out[RSM_OUT_BYTES];
static u32 rsm_out_len;
/* Where the record begins that is being written. */
static u32 rsm_out_record;

/* How many bytes there is room for, the padding of a record left aside. */
static u32 rsm_room(void) { return RSM_OUT_BYTES - 8 - rsm_out_len; }

/* Appends to the record that is being written. What has no room is a trap: look at rsm_room before. */
static void rsm_put(struct rsm_bytes bytes) {
    if (bytes.len > rsm_room()) __builtin_trap();
    __builtin_memcpy(rsm_out + rsm_out_len, bytes.at, bytes.len);
    rsm_out_len += bytes.len;
}

static void rsm_put_number(i64 value) {
    u8 digits[20];
    u32 at = sizeof digits;
    u64 rest = value < 0 ? -(u64)value : (u64)value;
    do digits[--at] = (u8)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) digits[--at] = '-';
    rsm_put((struct rsm_bytes){digits + at, sizeof digits - at});
}

static void rsm_begin(u32 tag, const u8 to[16]) {
    u8 header[24] = {0};
    rsm_out_record = rsm_out_len;
    rsm_store(header, tag, 4);
    if (to) __builtin_memcpy(header + 8, to, 16);
    rsm_put((struct rsm_bytes){header, sizeof header});
}

/* Begins the reply; rsm_put says what it is, and rsm_end ends it. */
static void rsm_reply(void) { rsm_begin(0, 0); }

/* Begins an event for the subscribers of a session, or of a topic: the first 16 bytes of the SHA-256 of its name. */
static void rsm_push(const u8 to[16]) { rsm_begin(1, to); }

static void rsm_end(void) {
    rsm_store(rsm_out + rsm_out_record + 4, rsm_out_len - rsm_out_record - 24, 4);
    while (rsm_out_len % 8) rsm_out[rsm_out_len++] = 0;
}

static u64 rsm_region(const void *at, u32 len) { return (u64)(u32)at << 32 | len; }

/* ---- Snapshots: {u32 len; len bytes} for each record, at the end {u32 0xffffffff; u64 number of records} ---- */

#define RSM_STREAM_END 0xffffffffu

/* The next record of the snapshot that is being taken; all ones: only its end is left to be taken. */
static u32 rsm_snapshot_next;
/* The beginning of a record, or of the end, whose rest is in a chunk to come. */
static u8 rsm_partial[4 + RSM_RECORD_BYTES];
static u32 rsm_partial_len;
static u64 rsm_restored;
static i32 rsm_restore_ended;

/* Begins a record, in machine_record; rsm_put says what it is. */
static void rsm_record(void) {
    rsm_out_record = rsm_out_len;
    rsm_put((struct rsm_bytes){(const u8 *)"\0\0\0", 4});
}

RSM_EXPORT(rsm_snapshot) u64 rsm_snapshot(u32 max) {
    if (max > RSM_OUT_BYTES) max = RSM_OUT_BYTES;
    rsm_out_len = 0;
    if (rsm_snapshot_next == ~0u) {
        rsm_snapshot_next = 0;
        return 0; /* the empty chunk, which ends it */
    }
    /* Whole records, as long as one more has room: a chunk needn't be full. */
    while (rsm_out_len + sizeof rsm_partial <= max) {
        if (machine_record(rsm_snapshot_next)) {
            rsm_store(rsm_out + rsm_out_record, rsm_out_len - rsm_out_record - 4, 4);
            rsm_snapshot_next++;
        } else {
            u8 end[12];
            rsm_store(end, RSM_STREAM_END, 4);
            rsm_store(end + 4, rsm_snapshot_next, 8);
            rsm_put((struct rsm_bytes){end, sizeof end});
            rsm_snapshot_next = ~0u;
            break;
        }
    }
    return rsm_region(rsm_out, rsm_out_len);
}

/* Takes a whole record, or the end. */
static i32 rsm_take(u32 schema) {
    u32 len = rsm_partial_len;
    rsm_partial_len = 0;
    if ((u32)rsm_load(rsm_partial, 4) != RSM_STREAM_END) {
        rsm_restored++;
        return machine_restore(schema, (struct rsm_bytes){rsm_partial + 4, len - 4});
    }
    if (rsm_load(rsm_partial + 4, 8) != rsm_restored) return rsm_refuse(RSM_TEXT("the snapshot has lost a record"));
    rsm_restore_ended = 1;
    return 0;
}

RSM_EXPORT(rsm_restore) u32 rsm_restore(const u8 *at, u32 len, u32 schema, u32 last) {
    for (u32 i = 0; i < len; i++) {
        if (rsm_restore_ended) return rsm_refuse(RSM_TEXT("the snapshot goes on after its end"));
        rsm_partial[rsm_partial_len++] = at[i];
        if (rsm_partial_len < 4) continue;
        u32 told = (u32)rsm_load(rsm_partial, 4);
        if (told != RSM_STREAM_END && told > RSM_RECORD_BYTES)
            return rsm_refuse(RSM_TEXT("a record of the snapshot is longer than any of this module"));
        if (rsm_partial_len == (told == RSM_STREAM_END ? 12 : 4 + told) && rsm_take(schema)) return 1;
    }
    if (last && !rsm_restore_ended) return rsm_refuse(RSM_TEXT("the snapshot breaks off"));
    return 0;
}

/* ---- The other exports ---- */

static u8 *rsm_input_at;

RSM_EXPORT(rsm_abi_1) void rsm_abi_1(void) {}

RSM_EXPORT(rsm_describe) u64 rsm_describe(void) {
    static const char description[] = RSM_DESCRIPTION;
    return rsm_region(description, sizeof description - 1);
}

/* New pages at the end of the memory. */
RSM_EXPORT(rsm_input) u8 *rsm_input(u32 max) {
    u32 page = (u32)__builtin_wasm_memory_grow(0, (max + 65535) >> 16);
    if (page == ~0u) __builtin_trap();
    return rsm_input_at = (u8 *)(page << 16);
}

RSM_EXPORT(rsm_init) u32 rsm_init(const u8 *at, u32 len) { return (u32)machine_init((struct rsm_bytes){at, len}); }

RSM_EXPORT(rsm_apply) u64 rsm_apply(const u8 *at, u32 len) {
    rsm_out_len = rsm_snapshot_next = 0; /* an entry breaks a snapshot off */
    machine_apply((const struct rsm_context *)at, (struct rsm_bytes){at + RSM_HEADER_BYTES, len - RSM_HEADER_BYTES});
    return rsm_region(rsm_out, rsm_out_len);
}

RSM_EXPORT(rsm_query) u64 rsm_query(const u8 *at, u32 len) {
    rsm_out_len = 0;
    machine_query((const struct rsm_context *)at, (struct rsm_bytes){at + RSM_HEADER_BYTES, len - RSM_HEADER_BYTES});
    return rsm_region(rsm_out, rsm_out_len);
}

#endif
