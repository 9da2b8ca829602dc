# What is installed, and the three Debian packages that CPack makes of it: `ninja package`, or deploy/build-packages.
# Paths are whole ones, since these files belong to a system: `cmake --install BUILD --prefix /`.
set(packaging ${PROJECT_SOURCE_DIR}/deploy/packaging)
find_package(Python3 REQUIRED COMPONENTS Interpreter)

# rb_package(PROGRAM SECTION N DESCRIPTION TEXT [DEPENDS PACKAGES]): the program, its man page, and its control files.
function(rb_package program)
  cmake_parse_arguments(arg "" "SECTION;DESCRIPTION;DEPENDS" "" ${ARGN})
  install(TARGETS ${program} RUNTIME DESTINATION usr/bin COMPONENT ${program})
  install(FILES ${PROJECT_SOURCE_DIR}/CHANGELOG.md DESTINATION usr/share/doc/${program} COMPONENT ${program})
  # Written by the program that is packed, so that it cannot say anything else than `--help` does.
  install(CODE "
    set(root \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}\")
    execute_process(COMMAND ${Python3_EXECUTABLE} ${packaging}/man_page.py $<TARGET_FILE:${program}> ${arg_SECTION}
      \"\${root}/usr/share/man/man${arg_SECTION}\" COMMAND_ERROR_IS_FATAL ANY)" COMPONENT ${program})
  string(TOUPPER ${program} name)
  file(GLOB control CONFIGURE_DEPENDS ${packaging}/${program}/*)
  set(CPACK_DEBIAN_${name}_PACKAGE_NAME ${program} PARENT_SCOPE)
  set(CPACK_DEBIAN_${name}_DESCRIPTION "${arg_DESCRIPTION}" PARENT_SCOPE)
  set(CPACK_DEBIAN_${name}_PACKAGE_DEPENDS "${arg_DEPENDS}" PARENT_SCOPE)
  set(CPACK_DEBIAN_${name}_PACKAGE_CONTROL_EXTRA "${control}" PARENT_SCOPE)
endfunction()

rb_package(rb-agent SECTION 8 DEPENDS "systemd, init-system-helpers"
  DESCRIPTION "The agent, for each server: keeps releases of each service's folder that are
proved restorable, and brings the folder from one to another by renames, so
that it is wholly the old or wholly the new one whatever is killed on the way.
Asked by rb-controller, or by hand with rb-agent local.")
rb_package(rb-controller SECTION 8 DEPENDS "systemd, init-system-helpers"
  DESCRIPTION "The controller: knows the fleet, commits operations on all servers together or
on none, keeps their history, and measures each recovery against its target.")
rb_package(rbctl SECTION 1
  DESCRIPTION "The command line, for workstations: asks rb-controller, with the identity that
it has given out.")

foreach(daemon rb-agent rb-controller)
  install(FILES ${PROJECT_SOURCE_DIR}/deploy/systemd/${daemon}.service DESTINATION lib/systemd/system
    COMPONENT ${daemon})
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/deploy/systemd/rb-controller.sysusers DESTINATION usr/lib/sysusers.d
  RENAME rb-controller.conf COMPONENT rb-controller)
install(FILES ${PROJECT_SOURCE_DIR}/deploy/systemd/rb-controller.tmpfiles DESTINATION usr/lib/tmpfiles.d
  RENAME rb-controller.conf COMPONENT rb-controller)
install(FILES ${PROJECT_SOURCE_DIR}/deploy/examples/agent.yaml.example DESTINATION etc/rb COMPONENT rb-agent)
install(FILES ${PROJECT_SOURCE_DIR}/deploy/examples/fleet.yaml.example DESTINATION etc/rb COMPONENT rb-controller)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/deploy/prometheus ${PROJECT_SOURCE_DIR}/deploy/grafana
  DESTINATION usr/share/doc/rb-controller COMPONENT rb-controller)
install(PROGRAMS ${PROJECT_SOURCE_DIR}/deploy/hooks/postgresql DESTINATION usr/share/doc/rb-agent/hooks
  COMPONENT rb-agent)
install(CODE "
  set(root \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/usr/share\")
  file(MAKE_DIRECTORY \${root}/bash-completion/completions \${root}/zsh/vendor-completions
    \${root}/fish/vendor_completions.d)
  foreach(pair \"bash;bash-completion/completions/rbctl\" \"zsh;zsh/vendor-completions/_rbctl\"
      \"fish;fish/vendor_completions.d/rbctl.fish\")
    list(POP_FRONT pair shell path)
    execute_process(COMMAND $<TARGET_FILE:rbctl> completion \${shell} OUTPUT_FILE \${root}/\${path}
      COMMAND_ERROR_IS_FATAL ANY)
  endforeach()" COMPONENT rbctl)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME rbctl)
set(CPACK_PACKAGE_VENDOR "rbctl maintainers")
set(CPACK_PACKAGE_CONTACT "rbctl maintainers <maintainers@users.noreply.r-seed-ed3bd783.example>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Rolls a fleet of servers back as one")
set(CPACK_PACKAGING_INSTALL_PREFIX "/")
set(CPACK_COMPONENTS_ALL rb-agent rb-controller rbctl)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_STRIP_FILES ON)
include(CPack)
