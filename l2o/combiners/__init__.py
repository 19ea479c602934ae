"""How the meta-gradients of several tasks or objectives become one, an algorithm a file."""
