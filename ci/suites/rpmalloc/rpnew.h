/* In the place of rpmalloc's header of this name: new and delete are the preloaded library's. */
