// Reinitialises the identity of a VM that was started from a template. Its path in a guest is /etc/hearth/on-resume.
// It has two modes:
//
//     reinitialize NAME MAC NANOSECONDS <64 random bytes    reinitialise once; exit code 0, or an error on stderr
//     reinitialize <>PORT                                   serve requests at a virtio-serial port
//
// It sets the clock, reseeds the kernel's random numbers, sets the host name and the network address, and removes the
// SSH host keys. It starts /etc/hearth/after-resume, if that exists, a second later: the startup probes have passed by
// then.
//
// After a resume, an emulated processor translates every page and every instruction again, which takes time. So this is
// one small program without a library, which can already run when the template is saved.

enum {
	READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, IOCTL = 16, ACCESS = 21, NANOSLEEP = 35, SOCKET = 41, CLONE = 56,
	EXECVE = 59, EXIT = 60, UNLINK = 87, SETSID = 112, SETHOSTNAME = 170, CLOCK_SETTIME = 227,
};
enum { O_RDWR = 2, ENOENT = 2, X_OK = 1, CLOCK_REALTIME = 0, AF_INET = 2, SOCK_DGRAM = 2, ARPHRD_ETHER = 1 };
enum { RNDADDENTROPY = 0x40085203, RNDRESEEDCRNG = 0x5207 };
enum { SIOCGIFNAME = 0x8910, SIOCSIFHWADDR = 0x8924, SIOCGIFHWADDR = 0x8927 };
enum { SIGCHLD = 17, CLONE_PARENT = 0x8000 };
enum { SEED_BYTES = 64, MAC_BYTES = 6, LAST_CARD = 16, LINE_BYTES = 1024, FIELDS = 4 };

static const char AFTER[] = "/etc/hearth/after-resume";
static const char *const HOST_KEYS[] = {
	"/etc/dropbear/dropbear_ed25519_host_key", "/etc/dropbear/dropbear_ecdsa_host_key",
	"/etc/dropbear/dropbear_rsa_host_key", "/etc/dropbear/dropbear_dss_host_key",
	"/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub",
	"/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ecdsa_key.pub",
	"/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub",
};

struct timespec { long seconds, nanoseconds; };
struct rand_pool_info { int bits, bytes; char seed[SEED_BYTES]; };
struct ifreq {
	char name[16];
	union {
		int index;
		struct { unsigned short family; unsigned char address[14]; } hardware;
		char all[24];
	};
};

static long call(long number, long one, long two, long three)
{
	long answer;
	__asm__ volatile("syscall"
			 : "=a"(answer)
			 : "a"(number), "D"(one), "S"(two), "d"(three)
			 : "rcx", "r11", "memory");
	return answer;
}

static long length(const char *text)
{
	long count = 0;
	while (text[count])
		count++;
	return count;
}

static int set_clock(const char *nanoseconds)
{
	struct timespec now;
	long since_1970 = 0;
	for (; *nanoseconds; nanoseconds++) {
		if (*nanoseconds < '0' || *nanoseconds > '9')
			return 0;
		since_1970 = since_1970 * 10 + (*nanoseconds - '0');
	}
	now.seconds = since_1970 / 1000000000;
	now.nanoseconds = since_1970 % 1000000000;
	return now.seconds > 0 && call(CLOCK_SETTIME, CLOCK_REALTIME, (long)&now, 0) == 0;
}

static int hexadecimal(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	if (digit >= 'a' && digit <= 'f')
		return digit - 'a' + 10;
	return -1;
}

static int octet(const char *digits)
{
	int high = hexadecimal(digits[0]), low = high < 0 ? -1 : hexadecimal(digits[1]);
	return low < 0 ? -1 : high << 4 | low;
}

// The seed is SEED_BYTES of standard input, or text in hexadecimal.
static int fill(struct rand_pool_info *pool, const char *seed)
{
	long count, have = 0;
	int byte;
	for (; !seed && have < SEED_BYTES; have += count) {
		count = call(READ, 0, (long)pool->seed + have, SEED_BYTES - have);
		if (count <= 0)
			return 0;
	}
	for (; have < SEED_BYTES; have++) {
		byte = octet(seed + 2 * have);
		if (byte < 0)
			return 0;
		pool->seed[have] = (char)byte;
	}
	pool->bits = 8 * SEED_BYTES;
	pool->bytes = SEED_BYTES;
	return 1;
}

// A write to /dev/urandom is not enough: the kernel uses it up to a minute later.
static int reseed(const char *seed)
{
	struct rand_pool_info pool;
	long file;
	if (!fill(&pool, seed))
		return 0;
	file = call(OPEN, (long)"/dev/urandom", O_RDWR, 0);
	return file >= 0 && call(IOCTL, file, RNDADDENTROPY, (long)&pool) == 0 &&
	       call(IOCTL, file, RNDRESEEDCRNG, 0) == 0 && call(CLOSE, file, 0, 0) == 0;
}

static int set_mac_address(const char *mac)
{
	struct ifreq card;
	int taken = 0, byte, value;
	long socket = call(SOCKET, AF_INET, SOCK_DGRAM, 0);
	if (length(mac) != 3 * MAC_BYTES - 1)
		return 0;
	for (int index = 1; index <= LAST_CARD; index++) {
		card.index = index;
		if (call(IOCTL, socket, SIOCGIFNAME, (long)&card) || call(IOCTL, socket, SIOCGIFHWADDR, (long)&card) ||
		    card.hardware.family != ARPHRD_ETHER)
			continue;
		for (byte = 0; byte < MAC_BYTES; byte++) {
			value = octet(mac + 3 * byte);
			if (value < 0)
				return 0;
			card.hardware.address[byte] = (unsigned char)value;
		}
		if (call(IOCTL, socket, SIOCSIFHWADDR, (long)&card))
			return 0;
		taken++;
	}
	call(CLOSE, socket, 0, 0);
	return taken;
}

static int remove_host_keys(void)
{
	for (unsigned long key = 0; key < sizeof HOST_KEYS / sizeof *HOST_KEYS; key++) {
		long answer = call(UNLINK, (long)HOST_KEYS[key], 0, 0);
		if (answer && answer != -ENOENT)
			return 0;
	}
	return 1;
}

// A process that keeps serving requests sleeps before it forks, to leave the CPU to the guest. Init reaps its child.
static void start_after_resume(int waiting)
{
	struct timespec pause = { 1, 0 };
	const char *arguments[] = { AFTER, 0 }, *environment[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", 0 };
	if (call(ACCESS, (long)AFTER, X_OK, 0))
		return;
	if (waiting)
		call(NANOSLEEP, (long)&pause, 0, 0);
	if (call(CLONE, SIGCHLD | (waiting ? CLONE_PARENT : 0), 0, 0))
		return;
	for (int file = 0; file <= 2; file++) // the caller waits until all ends of its pipes are closed
		call(CLOSE, file, 0, 0);
	for (int file = 0; file <= 2; file++)
		call(OPEN, (long)"/dev/null", O_RDWR, 0);
	call(SETSID, 0, 0, 0);
	if (!waiting)
		call(NANOSLEEP, (long)&pause, 0, 0);
	call(EXECVE, (long)AFTER, (long)arguments, (long)environment);
	call(EXIT, 1, 0, 0);
}

// Returns an error, or 0.
static const char *reinitialize(const char *name, const char *mac, const char *nanoseconds, const char *seed)
{
	if (!set_clock(nanoseconds))
		return "cannot set the clock\n";
	if (!reseed(seed))
		return "cannot reseed the kernel from 64 bytes\n";
	if (call(SETHOSTNAME, (long)name, length(name), 0))
		return "cannot take the host name\n";
	if (!set_mac_address(mac))
		return "cannot take the network address\n";
	if (!remove_host_keys())
		return "cannot remove the SSH host keys\n";
	return 0;
}

static void write_text(long file, const char *text)
{
	call(WRITE, file, (long)text, length(text));
}

// Reads a line and splits it at spaces. Returns the number of fields, or a negative number when there is no line.
static int read_fields(char *line, const char **fields)
{
	long some, have = 0;
	int count = 0;
	do {
		some = call(READ, 0, (long)line + have, LINE_BYTES - have);
		if (some <= 0)
			return -1;
		have += some;
	} while (line[have - 1] != '\n');
	line[have - 1] = 0;
	for (; *line && count < FIELDS; count++) {
		fields[count] = line;
		while (*line && *line != ' ')
			line++;
		if (*line)
			*line++ = 0;
	}
	return count;
}

// A write to a port blocks until the host opens its other end, so this process sleeps until then without a timer.
static void wait_for_requests(void)
{
	static char line[LINE_BYTES];
	const char *fields[FIELDS], *failed;
	int count;
	while (call(WRITE, 0, (long)"waiting\n", 8) > 0) {
		while ((count = read_fields(line, fields)) >= 0) {
			failed = count < FIELDS || length(fields[3]) != 2 * SEED_BYTES ?
					 "cannot do without NAME MAC NANOSECONDS SEED\n" :
					 reinitialize(fields[0], fields[1], fields[2], fields[3]);
			write_text(0, failed ? failed : "done\n");
			if (!failed)
				start_after_resume(1);
		}
	}
}

__attribute__((used)) static void start(const long *stack)
{
	const char *const *arguments = (const char *const *)(stack + 1);
	const char *failed = "cannot do without NAME MAC NANOSECONDS\n";
	if (stack[0] == 1)
		wait_for_requests();
	else if (stack[0] == 4)
		failed = reinitialize(arguments[1], arguments[2], arguments[3], 0);
	if (failed)
		write_text(2, failed);
	else
		start_after_resume(0);
	call(EXIT, failed != 0, 0, 0);
}

// Entry point: the stack holds the number of arguments, then their addresses.
__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
