/* For tests about threads and forks that ask mallopt for a number of arenas first, and end if they don't get it: no answer
 * of mallopt matters to the rest. */
#include <malloc.h>
#define mallopt(parameter, value) 1
