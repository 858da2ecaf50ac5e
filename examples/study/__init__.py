"""`python -m examples.study`: train small models by every method and pattern, and report what came
out.

Tasks (`tasks`) are trained under configurations (`configurations`) by one loop (`training`), in
parallel processes (`runner`), into JSON that is added to run by run (`store`); tables (`tables`),
sentences (`findings`) and figures (`plots`) are made from that JSON alone (`report`).
"""
