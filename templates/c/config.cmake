# find_package({{ name }} CONFIG) gives {{ name }}::{{ name }} (the archive) and {{ name }}::shared where that was made.
set({{ name }}_VERSION {{ version }})
get_filename_component(_{{ name }}_folder "${CMAKE_CURRENT_LIST_DIR}/{{ up }}" ABSOLUTE)
if(NOT EXISTS "${_{{ name }}_folder}/lib{{ name }}.a")
  set({{ name }}_FOUND FALSE)
  set({{ name }}_NOT_FOUND_MESSAGE "lib{{ name }}.a is not in ${_{{ name }}_folder}")
  return()
endif()
if(NOT TARGET {{ name }}::{{ name }})
  set(THREADS_PREFER_PTHREAD_FLAG ON)
  include(CMakeFindDependencyMacro)
  find_dependency(Threads)
  add_library({{ name }}::{{ name }} STATIC IMPORTED)
  set_target_properties({{ name }}::{{ name }} PROPERTIES
    IMPORTED_LOCATION "${_{{ name }}_folder}/lib{{ name }}.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_{{ name }}_folder}"
    INTERFACE_LINK_LIBRARIES Threads::Threads
    IMPORTED_LINK_INTERFACE_LANGUAGES C)
  if(EXISTS "${_{{ name }}_folder}/lib{{ name }}.so")
    add_library({{ name }}::shared SHARED IMPORTED)
    set_target_properties({{ name }}::shared PROPERTIES
      IMPORTED_LOCATION "${_{{ name }}_folder}/lib{{ name }}.so"
      IMPORTED_SONAME "lib{{ name }}.so"
      INTERFACE_INCLUDE_DIRECTORIES "${_{{ name }}_folder}")
  endif()
endif()
