/* Stands in for libnvidia-ml.so.1 in tests: answers from a state file, which a test changes while NVML is in use.
 *
 * NVML_STUB_STATE names the file. Each line is "DEVICE KEY VALUE"; DEVICE is "-" for what concerns the whole machine,
 * 0 to 15 for a card, 16 + 8 * card + n for its n-th MIG instance. A key that is not there is "Not Supported".
 * nvml_stub.py writes the file and says which keys there are. The file is read anew whenever it was replaced.
 *
 * Built with -DOLD_DRIVER it lacks the functions that drivers before R535 lacked, built with -DANCIENT_DRIVER also those
 * of before R470: looking them up fails, as it does there.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };
enum { CARDS = 16, DEVICES = 16 + 16 * 8, KEYS = 64, FUNCTIONS = 64 };

typedef unsigned long long u64;
typedef struct { char key[48]; char value[160]; } Entry;
typedef struct { Entry entries[KEYS]; int count; } Table;
typedef struct { int number; } Device;
typedef struct { int card; int registered; } EventSet;

static Table machine, tables[DEVICES];
static Device devices[DEVICES];
static int lost[CARDS], delivered[CARDS], initialised;
static struct { char name[64]; int calls; } calls[FUNCTIONS];
static ino_t last_inode;
static struct timespec last_change;

static void load(void) {
    const char *path = getenv("NVML_STUB_STATE");
    struct stat now;
    if (!path || stat(path, &now)) { memset(&machine, 0, sizeof machine); memset(tables, 0, sizeof tables); return; }
    if (now.st_ino == last_inode && now.st_mtim.tv_sec == last_change.tv_sec
        && now.st_mtim.tv_nsec == last_change.tv_nsec) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    last_inode = now.st_ino;
    last_change = now.st_mtim;
    memset(&machine, 0, sizeof machine);
    memset(tables, 0, sizeof tables);
    char line[320], owner[16];
    Entry entry;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%15s %47s %159[^\n]", owner, entry.key, entry.value) != 3) continue;
        Table *table = owner[0] == '-' ? &machine : atoi(owner) < DEVICES ? &tables[atoi(owner)] : NULL;
        if (table && table->count < KEYS) table->entries[table->count++] = entry;
    }
    fclose(file);
}

static const char *find(const Table *table, const char *key) {
    for (int i = 0; i < table->count; i++)
        if (!strcmp(table->entries[i].key, key)) return table->entries[i].value;
    return NULL;
}

static void count_call(const char *name) {
    for (int i = 0; i < FUNCTIONS; i++) {
        if (!calls[i].name[0]) snprintf(calls[i].name, sizeof calls[i].name, "%s", name);
        if (!strcmp(calls[i].name, name)) { calls[i].calls++; return; }
    }
}

/* Blocks in the function that "hang" names until the test closes its end of the FIFO: "FUNCTION PATH". */
static void maybe_hang(const char *name) {
    const char *value = find(&machine, "hang");
    char function[64], path[128], byte;
    if (!value || sscanf(value, "%63s %127[^\n]", function, path) != 2 || strcmp(function, name)) return;
    int fifo = open(path, O_RDONLY);
    if (fifo < 0) return;
    while (read(fifo, &byte, 1) > 0) {}
    close(fifo);
}

static int enter_machine(const char *name) {
    load();
    count_call(name);
    maybe_hang(name);
    if (!initialised) return UNINITIALIZED;
    const char *error = find(&machine, "error");
    return error ? atoi(error) : SUCCESS;
}

/* The table of a device, or NULL and the error that the call returns. */
static Table *enter(const Device *device, const char *name, int *error) {
    if ((*error = enter_machine(name))) return NULL;
    if (device < devices || device >= devices + DEVICES) { *error = INVALID_ARGUMENT; return NULL; }
    Table *table = &tables[device->number];
    int card = device->number < CARDS ? device->number : (device->number - CARDS) / 8;
    if (find(&tables[card], "lost")) lost[card] = 1;  /* and stays so until NVML is started anew */
    if (lost[card]) { *error = GPU_IS_LOST; return NULL; }
    char key[80];
    snprintf(key, sizeof key, "error.%.40s", name);
    const char *told = find(table, key);
    if (!told) told = find(table, "error");
    if (told && (*error = atoi(told))) return NULL;
    return table;
}

static int number_of(const Device *device, const char *function, const char *key, unsigned *out) {
    int error;
    Table *table = enter(device, function, &error);
    if (!table) return error;
    const char *value = find(table, key);
    if (!value) return NOT_SUPPORTED;
    *out = (unsigned)strtoul(value, NULL, 10);
    return SUCCESS;
}

#define NUMBER(function, key) \
    int function(Device *device, unsigned *out) { return number_of(device, #function, key, out); }
#define NUMBER_OF(function, key) \
    int function(Device *device, unsigned which, unsigned *out) \
    { (void)which; return number_of(device, #function, key, out); }

static int text_of(const Device *device, const char *function, const char *key, char *out, unsigned size) {
    int error;
    Table *table = enter(device, function, &error);
    if (!table) return error;
    const char *value = find(table, key);
    if (!value) return NOT_SUPPORTED;
    snprintf(out, size, "%s", value);
    return SUCCESS;
}

/* ---- the library ---- */
int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    load();
    count_call("nvmlInitWithFlags");
    maybe_hang("nvmlInitWithFlags");
    const char *error = find(&machine, "init");
    if (!find(&machine, "count")) return DRIVER_NOT_LOADED;
    if (error && atoi(error)) return atoi(error);
    if (!initialised) memset(lost, 0, sizeof lost);
    initialised++;
    for (int i = 0; i < DEVICES; i++) devices[i].number = i;
    return SUCCESS;
}

int nvmlShutdown(void) {
    count_call("nvmlShutdown");
    if (!initialised) return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}

const char *nvmlErrorString(int error) {
    static char text[32];
    snprintf(text, sizeof text, "stub error %d", error);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int error = enter_machine("nvmlDeviceGetCount_v2");
    if (!error) *count = (unsigned)atoi(find(&machine, "count"));
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    int error = enter_machine("nvmlDeviceGetHandleByIndex_v2");
    if (error) return error;
    if (index >= CARDS) return INVALID_ARGUMENT;
    enter(&devices[index], "nvmlDeviceGetHandleByIndex_v2", &error);
    *device = &devices[index];
    return error;
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned size) {
    return text_of(device, "nvmlDeviceGetUUID", "uuid", uuid, size);
}

int nvmlDeviceGetName(Device *device, char *name, unsigned size) {
    return text_of(device, "nvmlDeviceGetName", "name", name, size);
}

/* ---- numbers ---- */
NUMBER(nvmlDeviceGetPowerUsage, "power")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
NUMBER_OF(nvmlDeviceGetTemperature, "temperature")
NUMBER_OF(nvmlDeviceGetClockInfo, "sm_clock")
NUMBER_OF(nvmlDeviceGetMaxClockInfo, "max_sm_clock")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")

int nvmlDeviceGetUtilizationRates(Device *device, unsigned rates[2]) {
    rates[1] = 0;
    return number_of(device, "nvmlDeviceGetUtilizationRates", "utilization", &rates[0]);
}

static int reasons_of(Device *device, const char *function, u64 *reasons) {
    unsigned value = 0;
    int error = number_of(device, function, "reasons", &value);
    *reasons = value;
    return error;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, u64 *reasons) {
    return reasons_of(device, "nvmlDeviceGetCurrentClocksThrottleReasons", reasons);
}

#if !defined(OLD_DRIVER) && !defined(ANCIENT_DRIVER)
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, u64 *reasons) {
    return reasons_of(device, "nvmlDeviceGetCurrentClocksEventReasons", reasons);
}
#endif

int nvmlDeviceGetTotalEccErrors(Device *device, unsigned type, unsigned counter, u64 *count) {
    unsigned value = 0;
    (void)counter;
    int error = number_of(device, "nvmlDeviceGetTotalEccErrors", type ? "ecc_uncorrected" : "ecc_corrected", &value);
    *count = value;
    return error;
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failure) {
    int error;
    Table *table = enter(device, "nvmlDeviceGetRemappedRows", &error);
    if (!table) return error;
    const char *value = find(table, "remapped_rows");
    if (!value || sscanf(value, "%u %u %u %u", corrected, uncorrected, pending, failure) != 4) return NOT_SUPPORTED;
    return SUCCESS;
}

/* ---- memory: "memory" is "TOTAL USED RESERVED" in bytes, the used ones without the reserved ---- */
static int memory_of(Device *device, const char *function, u64 *total, u64 *used, u64 *reserved) {
    int error;
    Table *table = enter(device, function, &error);
    if (!table) return error;
    const char *value = find(table, "memory");
    if (!value || sscanf(value, "%llu %llu %llu", total, used, reserved) != 3) return NOT_SUPPORTED;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *device, u64 info[3]) {
    u64 total, used, reserved;
    int error = memory_of(device, "nvmlDeviceGetMemoryInfo", &total, &used, &reserved);
    if (!error) info[0] = total, info[1] = total - used - reserved, info[2] = used + reserved;
    return error;
}

#if !defined(OLD_DRIVER) && !defined(ANCIENT_DRIVER)
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *info) {
    u64 total, used, reserved;
    if (info->version != (sizeof(MemoryV2) | 2u << 24)) return VERSION_MISMATCH;
    int error = memory_of(device, "nvmlDeviceGetMemoryInfo_v2", &total, &used, &reserved);
    if (!error) info->total = total, info->reserved = reserved, info->free = total - used - reserved, info->used = used;
    return error;
}
#endif

/* ---- processes: "PID:BYTES,PID:-1"; -1 is NVML_VALUE_NOT_AVAILABLE ---- */
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;

static int processes_of(Device *device, const char *function, const char *key, unsigned *count, Process *out) {
    int error;
    Table *table = enter(device, function, &error);
    if (!table) return error;
    const char *value = find(table, key);
    if (!value) return NOT_SUPPORTED;
    unsigned room = out ? *count : 0, found = 0;
    long long bytes;
    unsigned pid;
    while (sscanf(value, "%u:%lld", &pid, &bytes) == 2) {
        if (found < room) out[found] = (Process){pid, (u64)bytes, ~0u, ~0u};
        found++;
        if (!(value = strchr(value, ','))) break;
        value++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESSES(function, key) \
    int function(Device *device, unsigned *count, Process *out) \
    { return processes_of(device, #function, key, count, out); }

#ifndef ANCIENT_DRIVER
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps")
#ifndef OLD_DRIVER
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

/* ---- MIG ---- */
int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    *pending = 0;
    return number_of(device, "nvmlDeviceGetMigMode", "mig", current);
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    int error;
    if (!enter(device, "nvmlDeviceGetMaxMigDeviceCount", &error)) return error;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **out) {
    int error;
    if (!enter(device, "nvmlDeviceGetMigDeviceHandleByIndex", &error)) return error;
    int number = CARDS + device->number * 8 + (int)index;
    if (index >= 7 || !find(&tables[number], "uuid")) return NOT_FOUND;
    *out = &devices[number];
    return SUCCESS;
}

NUMBER(nvmlDeviceGetGpuInstanceId, "gpu_instance")
NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance")
#endif

/* ---- events: "xids" is all that were ever raised, "79" or, of GPU instance 1, "79@1", joined by commas ---- */
typedef struct { Device *device; u64 type, data; unsigned gpu_instance, compute_instance; } Event;

int nvmlEventSetCreate(EventSet **set) {
    int error = enter_machine("nvmlEventSetCreate");
    if (!error) *set = calloc(1, sizeof **set);
    return error;
}

int nvmlEventSetFree(EventSet *set) {
    count_call("nvmlEventSetFree");
    free(set);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Device *device, u64 types, EventSet *set) {
    int error;
    Table *table = enter(device, "nvmlDeviceRegisterEvents", &error);
    if (!table) return error;
    if (types != 8 || device->number >= CARDS) return NOT_SUPPORTED;
    *set = (EventSet){device->number, 1};
    return SUCCESS;
}

int nvmlEventSetWait_v2(EventSet *set, Event *event, unsigned milliseconds) {
    int error = enter_machine("nvmlEventSetWait_v2"), number = 0;
    if (error) return error;
    if (milliseconds || !set->registered) return INVALID_ARGUMENT;
    const char *value = find(&tables[set->card], "xids");
    for (; value; value = strchr(value, ','), value += !!value, number++) {
        if (number < delivered[set->card]) continue;
        unsigned instance = ~0u, xid = 0;
        sscanf(value, "%u@%u", &xid, &instance);
        *event = (Event){&devices[set->card], 8, xid, instance, ~0u};
        delivered[set->card]++;
        return SUCCESS;
    }
    return TIMEOUT;
}

/* ---- for the tests themselves ---- */
int stub_calls(const char *name) {
    for (int i = 0; i < FUNCTIONS; i++)
        if (!strcmp(calls[i].name, name)) return calls[i].calls;
    return 0;
}

void stub_reset(void) {
    memset(lost, 0, sizeof lost);
    memset(delivered, 0, sizeof delivered);
    memset(calls, 0, sizeof calls);
    initialised = 0;
    last_inode = 0;
}
