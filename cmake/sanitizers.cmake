if(RB_SANITIZE)
  add_compile_options(-fsanitize=${RB_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${RB_SANITIZE})
endif()
