"""The glue: Celery tasks that load rows, call `adapters`, save rows. Holds no rule and no maths."""
