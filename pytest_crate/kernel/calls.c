/*
 * Carries out a table of system calls, and then is the program that the last of them executes.
 *
 * What enters a crate, and a crate's pid 1, are born of the launcher, whose memory a fork would copy page by page: 4 of
 * the 5 ms that a program takes. This is a process of thirty pages instead. It decides nothing: Python writes the
 * table (calls.py), and calls the same functions without this where it can't be had.
 *
 * Its one variable has the table's descriptor and its size in bytes. No C library is needed, so it runs on every one.
 */
#include <stdint.h>

#if defined(__x86_64__)
enum { NR_write = 1, NR_close = 3, NR_mmap = 9, NR_exit = 60 };

static long call(long number, const uint64_t *a)
{
    long result;
    register uint64_t r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(__aarch64__)
enum { NR_close = 57, NR_write = 64, NR_exit = 93, NR_mmap = 222 };

static long call(long number, const uint64_t *a)
{
    register long x8 __asm__("x8") = number;
    register uint64_t x0 __asm__("x0") = a[0], x1 __asm__("x1") = a[1], x2 __asm__("x2") = a[2];
    register uint64_t x3 __asm__("x3") = a[3], x4 __asm__("x4") = a[4], x5 __asm__("x5") = a[5];
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
    return (long)x0;
}

__asm__(".globl _start\n_start:\n\tmov x0, sp\n\tbl begin\n");
#else
#error "the numbers of this machine's system calls are not known here"
#endif

enum { INTERRUPTED = 4 }; /* EINTR */

/* How a call's arguments and its result are meant; calls.py has the same numbers. */
enum {
    IS_OFFSET = 1 << 0,  /* ... of argument 0; of argument 1 the next bit, and so on: an offset into the table */
    IS_RESULT = 1 << 6,  /* likewise: what an earlier call returned */
    MAY_FAIL = 1 << 12,  /* an error is remembered, and the next call made */
    NOT_ZERO = 1 << 13,  /* 0 is the end */
    SPLIT = 1 << 14,     /* it bears a child, which goes on; the parent tells its pid, and ends */
};

enum { REFUSED = 0xffffffff }; /* a number of no call: fail as the first did that may fail, but for "not found" */
enum { NOT_FOUND = 2, NO_DIRECTORY = 20 };
enum { PID = -1 };

struct call {
    uint32_t number, flags;
    uint64_t arguments[6];
};

/* The table: this, the calls, what they point to, and at last the places of the pointers in it. */
struct table {
    uint32_t calls, pointers, pointers_at;
    int32_t telling;
};

static void end(int status)
{
    uint64_t arguments[6] = {status};
    for (;;)
        call(NR_exit, arguments);
}

static void tell(const struct table *table, int32_t what, int32_t value)
{
    int32_t word[2] = {what, value};
    uint64_t arguments[6] = {table->telling, (uintptr_t)word, sizeof word};
    while (call(NR_write, arguments) == -INTERRUPTED)
        ;
}

static void carry_out(struct table *table)
{
    char *base = (char *)table;
    struct call *calls = (struct call *)(table + 1);
    const uint64_t *pointers = (const uint64_t *)(base + table->pointers_at);
    long refused = 0;

    for (uint32_t i = 0; i < table->pointers; i++)
        *(uint64_t *)(base + pointers[i]) += (uintptr_t)base;
    for (uint32_t i = 0; i < table->calls; i++) {
        struct call *now = &calls[i];
        uint64_t arguments[6];
        for (int j = 0; j < 6; j++) {
            arguments[j] = now->arguments[j];
            if (now->flags & IS_OFFSET << j)
                arguments[j] += (uintptr_t)base;
            else if (now->flags & IS_RESULT << j)
                arguments[j] = calls[arguments[j]].arguments[0];
        }
        long result;
        if (now->number == REFUSED)
            result = refused;
        else
            do
                result = call(now->number, arguments);
            while (result == -INTERRUPTED);
        now->arguments[0] = (uint64_t)result;
        if (result < 0 && result >= -4095) {
            if (!(now->flags & MAY_FAIL)) {
                tell(table, (int32_t)i, (int32_t)-result);
                end(127);
            }
            if (!refused || refused == -NOT_FOUND || refused == -NO_DIRECTORY)
                refused = result;
        } else if (now->flags & NOT_ZERO && !result)
            end(127);
        else if (now->flags & SPLIT && result) {
            tell(table, PID, (int32_t)result);
            end(0);
        }
    }
    end(0);
}

static uint64_t take_number(const char **text)
{
    uint64_t number = 0;
    while (**text && (**text < '0' || **text > '9'))
        ++*text;
    while (**text >= '0' && **text <= '9')
        number = number * 10 + (uint64_t)(*(*text)++ - '0');
    return number;
}

/* The stack holds the number of arguments, these, 0, and the variables (execve(2)). */
__attribute__((used)) static void begin(const uint64_t *stack)
{
    enum { READ_AND_WRITE = 3, MAP_PRIVATE = 2 };
    const char *variable = (const char *)stack[stack[0] + 2];
    if (!variable)
        end(126);
    uint64_t descriptor = take_number(&variable), size = take_number(&variable);
    /* Private, for the pointers are written into it. */
    uint64_t mapping[6] = {0, size, READ_AND_WRITE, MAP_PRIVATE, descriptor}, closing[6] = {descriptor};
    long table = call(NR_mmap, mapping);
    if (table < 0 && table >= -4095)
        end(126);
    call(NR_close, closing);
    carry_out((struct table *)table);
}
