# One interface target that every module of ours links, so that a flag is explained and changed in one place.
add_library(rb_warnings INTERFACE)
target_compile_options(rb_warnings INTERFACE
  -Wall -Wextra
  -Wshadow              # a shadowed name in a long lambda is usually a mistake
  -Wconversion          # sizes, offsets and ids must not narrow by accident
  -Wno-sign-conversion  # std containers and system calls disagree about signs everywhere
  -Wnon-virtual-dtor
  -Woverloaded-virtual
  # g++ 12 at -O2 takes `string = "literal"` for an overlapping copy (its bug 105651).
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<CONFIG:Release>>:-Wno-restrict>
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)  # checks common/mutex.h's annotations
if(RB_WARNINGS_AS_ERRORS)
  target_compile_options(rb_warnings INTERFACE -Werror)
endif()
