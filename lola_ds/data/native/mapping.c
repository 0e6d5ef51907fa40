/* Files mapped into memory, and recovery from reads of them that fail.
 *
 * A read of mapped memory past the end of a truncated file, or from a disk that fails, raises
 * SIGBUS in the thread that reads, and SIGBUS ends the process by default. A thread that has set
 * `on_fault` continues at its sigsetjmp instead. The contract between the two:
 *
 * - The handler runs only on the faulting thread, synchronously, so it sees that thread's
 *   `on_fault`. Its storage is of the initial-exec model: a plain load, never an allocation, which
 *   would not be safe in a handler.
 * - Between setting and clearing `on_fault` a thread only reads the mapping, computes, and writes
 *   its own memory: it takes no lock, allocates nothing and calls no function that may, as
 *   siglongjmp would leave a lock held. Only then is a jump out of a handler safe.
 * - Signal fences keep the compiler from moving reads of the mapping out of that section.
 * - Locals that are changed between the two and read after the jump would be indeterminate; the
 *   caller reads none (`copy_mapped` works on copies that it drops).
 * - The signal mask is neither saved nor restored (sigsetjmp(…, 0)): SA_NODEFER leaves SIGBUS
 *   unblocked while the handler runs, so that the next fault is delivered, too.
 * - A fault of other code goes to the handler that was there before; that handler may end the
 *   process, as the default does.
 */
#define _GNU_SOURCE
#include "native.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

_Thread_local sigjmp_buf *volatile on_fault __attribute__((tls_model("initial-exec")));

static struct sigaction previous;
static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER;

int64_t map_file(int descriptor, int64_t size)
{
    void *address = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, descriptor, 0);
    return address == MAP_FAILED ? 0 : (int64_t)address;
}

void unmap_file(int64_t address, int64_t size)
{
    munmap((void *)address, (size_t)size);
}

void release_file(int64_t address, int64_t size)
{
    madvise((void *)address, (size_t)size, MADV_DONTNEED);
}

static void handle(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    if (on_fault)
        siglongjmp(*on_fault, 1);
    /* A fault of other code: its handler is reinstated once, as it may pass the signal on to us.
     * sigaction and raise are async-signal-safe. */
    sigaction(number, &previous, NULL);
    previous = (struct sigaction){.sa_handler = SIG_DFL};
    raise(number);
}

void catch_faults(void)
{
    struct sigaction found, ours = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGBUS, NULL, &found);
    if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == handle)
        return;
    pthread_mutex_lock(&installing);
    sigaction(SIGBUS, NULL, &found);
    if (!(found.sa_flags & SA_SIGINFO) || found.sa_sigaction != handle) {
        previous = found;
        sigaction(SIGBUS, &ours, NULL);
    }
    pthread_mutex_unlock(&installing);
}
