/*
 * For programs that link Debian's libunwind.a with musl: it was compiled for glibc with fortified functions, of which
 * it calls this one, to print warnings.
 */
#include <stdarg.h>
#include <stdio.h>

int __fprintf_chk(FILE *stream, int flag, const char *format, ...)
{
	va_list arguments;
	int written;

	(void)flag;
	va_start(arguments, format);
	written = vfprintf(stream, format, arguments);
	va_end(arguments);
	return written;
}
